"""One edit as a small network that runs in real time, trained on pairs of pictures before and after the edit."""
