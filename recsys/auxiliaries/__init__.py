"""Further losses and what they need: contrasts, reasoning, distillation, pre-training."""
