"""What a job would read, take and cost, found out from a sample of its rows before any of them is scored."""
