"""The explorer: any result as one page that a person can click through, in a file or live on localhost."""
