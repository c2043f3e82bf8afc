"""The far end, emulated: a strict GitHub (REST for Apps, git over HTTP) for the demo and the tests."""
