"""The report: reads a run directory, draws plots, writes one page of HTML that opens offline."""
