"""What each sampled sequence gets of its reward: a file for each rule, read by the policy gradient."""
