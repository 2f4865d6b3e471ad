"""`guest serve`: what a stock kata-agent starts as its confidential-data-hub."""
