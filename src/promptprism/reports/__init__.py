"""Tables, plots and pages made of results."""
