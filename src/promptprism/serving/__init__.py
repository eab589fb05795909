"""What answers over HTTP; on this machine alone, unless told otherwise."""
