"""`dpo train`: DPO + λ·CE with the prompt of a pair encoded once."""
