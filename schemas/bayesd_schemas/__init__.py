"""What outlives the process: messages, events, the declared space and the study file.

Everything that two programs must agree on is in this package and nothing else is. It needs
pydantic alone, so a worker installs light.
"""
