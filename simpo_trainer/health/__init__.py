"""The rules of the health monitor: what to look for in a run, from which limit on, and what to say."""
