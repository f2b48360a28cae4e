"""Who answers a call: an endpoint, a model in this process, or a batch file."""
