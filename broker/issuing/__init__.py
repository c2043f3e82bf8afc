"""The use cases: issue, mint once, refresh ahead, look installations up."""
