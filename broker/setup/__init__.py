"""``broker setup``: a GitHub App made in the browser, its secrets kept on this machine."""
