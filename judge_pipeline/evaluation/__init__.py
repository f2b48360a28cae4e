"""Does a reward agree with the judge, or with people? Statistics, baselines, and `judge-pipeline evaluate`."""
