"""Tables over run folders."""
