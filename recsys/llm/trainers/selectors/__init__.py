"""Which data are trained on when: sources of batches around sources of batches (``Stage(data=...)``)."""
