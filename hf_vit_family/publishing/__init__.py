"""Model folders on the Hub: cards, staging, the check in a clean process, the push."""
