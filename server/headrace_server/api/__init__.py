"""HTTP: parse once, ask `serving`, answer in OpenAI's shapes. One router per resource; no decision is taken here."""
