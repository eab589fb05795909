"""What is served from this machine: a page to review answers."""
