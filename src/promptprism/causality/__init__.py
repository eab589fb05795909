"""What a model does under interventions, and the two misalignments; with their figures and tables."""
