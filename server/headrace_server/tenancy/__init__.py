"""Who is asking: keys and the callers behind them."""
