"""The page of verdicts: what the committed records of a suite say, method by method and claim by claim."""
