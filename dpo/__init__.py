"""From rewards to a better model: sample answers, pair best with worst, train DPO + λ·CE."""
