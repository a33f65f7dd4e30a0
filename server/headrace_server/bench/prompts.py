"""Prompts of about a wanted number of tokens, a different one for each request.

They are made of common English words, which are one token each in most vocabularies. Words are drawn at random from the
first one on, so that two prompts share no beginning worth caching. Equal seeds give equal prompts.
"""

import random

_TEXT = """
water river stone light night house green paper music table glass field horse bread cloud dream earth flame garden
heart island journey kitchen letter market number ocean people queen road silver tower valley winter yellow bridge
castle doctor engine forest guitar hammer iron jacket king ladder mirror needle orange pencil quiet rocket school
teacher uncle village window year zero animal butter candle desert evening father gold hill inside join kind long
morning north open power quick rain summer train under voice wheel young above begin carry deep early follow great
hold idea just keep learn mother never often place question right small think until very walk word about bright cold
door east fire good hand image jump late moon name old part rest sea time use view west work
"""
WORDS = tuple(_TEXT.split())


def make_prompt(num_tokens: int, seed: str) -> str:
    """About `num_tokens` tokens (at least one word)."""
    return " ".join(random.Random(seed).choices(WORDS, k=max(1, num_tokens)))
