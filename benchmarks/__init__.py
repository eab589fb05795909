"""Speed and memory, always as ratios to a plain reference measured in the same run."""
