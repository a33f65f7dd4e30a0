"""Where models are kept: sparse shards on disk, one mark per chunk, locks that die with their holders.

    model_store      what there is: find, publish, make room, remove, sweep
    stored_model     one model: leases, status, pins; from it a `model_writer`, a `model_reader`, an `integrity` check
    eviction         what goes first when room is needed; pure
    locks            who may do what at the same time

A chunk is checked, written, recorded and marked, in that order; so a marked chunk has the right bytes whoever dies
when. After a crash of the machine, which may lose what was not flushed, `recovery` looks at every marked chunk again
before anybody believes a mark.
"""
