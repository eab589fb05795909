"""What learning and predicting cost: operations, memory, and seconds measured on made-up images."""
