"""The one training loop: schedule, checkpoint, resume, progress, and what a run costs."""
