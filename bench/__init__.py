"""One command per claim: ``make bench``. Each prints ratios taken in one run on one machine."""
