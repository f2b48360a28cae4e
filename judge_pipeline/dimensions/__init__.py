"""The dimensions of the reward, one file each."""
