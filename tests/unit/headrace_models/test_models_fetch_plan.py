"""The fetch plan: readers first, then execution order, each chunk once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_models.chunk_layout import UNIT_BYTES
from headrace_models.fetch.plan import RUN_BYTES, FetchPlan, Run
from headrace_models.seek_index import IndexedFile, IndexedTensor, SeekIndex

MIB = 1 << 20


def build_index(*, num_layers: int = 12, mib_per_layer: int = 2, mib_embedding: int = 20) -> SeekIndex:
    """One shard, sorted by name as in a real file: layer 10 lies before layer 2."""
    groups = ("embedding", *(f"layer.{n}" for n in range(num_layers)), "head")
    sizes = [("embed", mib_embedding * MIB, 0), ("norm", 128, num_layers + 1)]
    sizes += [(f"layers.{n}.w", mib_per_layer * MIB, n + 1) for n in range(num_layers)]
    tensors, begin = [], 64
    for name, size, group in sorted(sizes):
        tensors.append(IndexedTensor(name, 0, begin, begin + size, "U8", (size,), group))
        begin += size
    tensors.sort(key=lambda tensor: (tensor.group, tensor.begin))
    file = IndexedFile("model.safetensors", begin, 64, None, None)
    return SeekIndex("file:///m", "r", None, groups, (file,), tuple(tensors), ())


def drain(plan: FetchPlan) -> list[Run]:
    """All runs, each settled as soon as it is taken."""
    runs = []
    while run := plan.next_run():
        runs.append(run)
        for chunk in range(run.first, run.end):
            plan.settle(run.file, chunk)
    return runs


def group_names(index: SeekIndex, runs: list[Run]) -> list[str | None]:
    """The group of each chunk of the runs, without repetitions."""
    names: list[str | None] = []
    for run in runs:
        for chunk in range(run.first, run.end):
            number = index.layouts[run.file].group_of(chunk)
            name = None if number is None else index.groups[number]
            if name not in names:
                names.append(name)
    return names


def test_runs_follow_the_execution_order_and_not_the_file_s() -> None:
    index = build_index()
    runs = drain(FetchPlan(index, index.chunks_in_order()))
    assert group_names(index, runs) == [None, "embedding", *(f"layer.{n}" for n in range(12)), "head"]
    begins = [run.begin_byte for run in runs]
    assert begins != sorted(begins), "layer 10 lies before layer 2 in the file"


def test_neighbours_are_joined_up_to_the_run_s_size() -> None:
    index = build_index()
    runs = drain(FetchPlan(index, index.chunks_in_order()))
    assert max(run.end_byte - run.begin_byte for run in runs) <= RUN_BYTES
    assert len(runs) < len(index.layouts[0]) / 3
    assert sum(run.end_byte - run.begin_byte for run in runs) == index.files[0].size_bytes


def test_what_a_reader_waits_for_goes_before_everything_else() -> None:
    index = build_index()
    plan = FetchPlan(index, index.chunks_in_order())
    drained = plan.next_run()
    last_layer = index.tensors_by_name["layers.11.w"]
    wanted = index.layouts[0].covering(last_layer.begin, last_layer.end)
    plan.want(0, wanted)
    run = plan.next_run()
    assert drained is not None
    assert run is not None
    assert (run.first, run.end) == (wanted.start, wanted.stop)


def test_on_demand_fetches_headers_and_what_is_wanted_and_nothing_else() -> None:
    index = build_index()
    plan = FetchPlan(index, index.chunks_in_order(), on_demand=True)
    assert group_names(index, drain(plan)) == [None]
    plan.want(0, range(3, 5))
    assert [(run.first, run.end) for run in drain(plan)] == [(3, 5)]


def test_a_stage_fetches_its_groups_and_a_demand_still_gets_another() -> None:
    index = build_index()
    plan = FetchPlan(index, index.chunks_in_order(), groups=frozenset({"layer.3", "head", "unknown"}))
    assert plan.open_bytes == 64 + 2 * MIB + 128
    assert group_names(index, drain(plan)) == [None, "layer.3", "head"]
    assert plan.is_done
    tensor = index.tensors_by_name["layers.5.w"]
    plan.want(0, index.layouts[0].covering(tensor.begin, tensor.end))
    assert group_names(index, drain(plan)) == ["layer.5"]
    assert plan.is_done


def test_a_shard_that_is_streamed_has_one_taker_and_what_did_not_come_waits_again() -> None:
    index = build_index()
    plan = FetchPlan(index, index.chunks_in_order())
    assert plan.claim_stream(0) is not None
    assert plan.claim_stream(0) is None
    assert plan.next_run() is None
    for chunk in range(10):
        plan.settle(0, chunk)
    plan.release_stream(0)
    runs = drain(plan)
    assert min(run.first for run in runs) == 10
    assert plan.is_done


def test_a_shard_that_proved_wrong_is_fetched_again() -> None:
    index = build_index()
    plan = FetchPlan(index, index.chunks_in_order())
    drain(plan)
    assert plan.is_done
    plan.forget(0)
    assert not plan.is_done
    assert sum(run.end_byte - run.begin_byte for run in drain(plan)) == index.files[0].size_bytes


def test_a_demand_of_what_was_left_out_belongs_to_what_is_to_come_until_it_arrives() -> None:
    index = build_index()
    plan = FetchPlan(index, index.chunks_in_order(), on_demand=True)
    drain(plan)
    assert plan.is_done
    demands = [(0, range(3, 5)), (0, range(4, 6))]
    assert plan.left_out_bytes(demands) == 3 * MIB
    for file, chunks in demands:
        plan.want(file, chunks)
    assert plan.left_out_bytes(demands) == 0
    assert (plan.is_done, plan.open_bytes) == (False, 3 * MIB)
    drain(plan)
    assert (plan.is_done, plan.open_bytes) == (True, 0)


def test_what_others_give_back_while_a_shard_is_streamed_is_not_passed_over_for_ever() -> None:
    index = build_index()
    plan = FetchPlan(index, index.chunks_in_order())
    header, run = plan.next_run(), plan.next_run()
    assert header is not None
    assert run is not None
    plan.claim_stream(0)
    plan.give_back(0, range(run.first, run.end))
    assert plan.next_run() is None, "the shard is streamed"
    for chunk in {*range(len(index.layouts[0]))} - {*range(run.first, run.end)}:
        plan.settle(0, chunk)
    plan.release_stream(0)
    assert [(again.first, again.end) for again in drain(plan)] == [(run.first, run.end)]


def test_the_work_for_one_run_does_not_grow_with_what_has_come() -> None:
    looks = 0

    class Counting(FetchPlan):
        def _is_free(self, file: int, chunk: int) -> bool:
            nonlocal looks
            looks += 1
            return super()._is_free(file, chunk)

    index = build_index(num_layers=400)
    plan = Counting(index, index.chunks_in_order())
    while run := plan.next_run():
        for chunk in range(run.first, run.end):
            plan.settle(0, chunk)
        plan.give_back(0, range(run.first, run.end))
    assert looks <= 5 * len(index.layouts[0])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_is_given_back_and_wanted_every_chunk_is_taken_until_it_is_settled(data: st.DataObject) -> None:
    index = build_index(num_layers=3, mib_embedding=3)
    num_chunks = len(index.layouts[0])
    missing = data.draw(st.sets(st.integers(0, num_chunks - 1)))
    plan = FetchPlan(index, [place for place in index.chunks_in_order() if place[1] in missing])
    taken: set[int] = set()
    settled: set[int] = set()
    for _ in range(200):
        if data.draw(st.booleans()):
            first = data.draw(st.integers(0, num_chunks - 1))
            plan.want(0, range(first, data.draw(st.integers(first, num_chunks))))
        run = plan.next_run()
        if run is None:
            break
        chunks = set(range(run.first, run.end))
        assert chunks <= missing - settled
        assert not chunks & taken, "nobody takes what another one has taken"
        assert run.end_byte - run.begin_byte <= max(RUN_BYTES, UNIT_BYTES)
        arrived = data.draw(st.integers(0, len(chunks)))
        taken |= chunks
        for chunk in sorted(chunks)[:arrived]:
            plan.settle(0, chunk)
            settled.add(chunk)
        plan.give_back(0, range(run.first, run.end))
        taken -= chunks
    else:
        for run in drain(plan):
            settled |= set(range(run.first, run.end))
    assert settled == missing
    assert plan.is_done
    assert plan.open_bytes == 0
