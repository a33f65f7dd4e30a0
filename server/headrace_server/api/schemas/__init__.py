"""Wire models: what a client may send, with OpenAI's bounds, checked before anything reaches an engine.

One module per family of endpoints. Fields that are not listed are dropped (clients send many hints); fields that
would change the answer but are not allowed here are refused by `serving.policy`, which knows the model's settings.
"""
