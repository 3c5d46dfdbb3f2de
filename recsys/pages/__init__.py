"""Pages of HTML that stand alone: of a run, of a comparison, of recorded results."""
