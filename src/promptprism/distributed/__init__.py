"""Work over several processes and machines, on engines that exist."""
