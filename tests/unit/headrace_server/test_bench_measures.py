"""headrace_server.bench.measures: samples and their pairs."""

from headrace_server.bench import measures
from headrace_server.bench.measures import MEASURES, Samples


def two_sides(*values: tuple[float, float]) -> Samples:
    samples = Samples()
    for ours, theirs in values:
        samples.add(measures.THROUGHPUT, "a", ours)
        samples.add(measures.THROUGHPUT, "b", theirs)
    return samples


def test_the_n_th_samples_of_both_sides_are_a_pair() -> None:
    ratios = two_sides((10.0, 5.0), (30.0, 10.0), (4.0, 4.0)).ratios("a", "b", seed=0)
    assert ratios[measures.THROUGHPUT].value == 2.0
    assert ratios[measures.THROUGHPUT].num_pairs == 3


def test_a_block_without_its_other_half_is_left_out() -> None:
    samples = two_sides((10.0, 5.0))
    samples.add(measures.THROUGHPUT, "a", 99.0)
    assert samples.ratios("a", "b", seed=0)[measures.THROUGHPUT].num_pairs == 1
    assert samples.pairs(measures.THROUGHPUT, "a", "b") == ([10.0], [5.0])


def test_a_sample_of_zero_and_a_side_without_samples_have_no_ratio() -> None:
    samples = two_sides((10.0, 0.0))
    samples.add(measures.TTFT_P50, "a", 1.0)
    assert samples.ratios("a", "b", seed=0) == {}


def test_measures_are_listed_in_the_order_in_which_they_are_shown() -> None:
    samples = Samples()
    samples.add_all("a", dict.fromkeys(reversed(MEASURES), 1.0))
    assert tuple(samples.measures()) == MEASURES


def test_values_are_shown_in_their_unit() -> None:
    assert measures.TTFT_P50.shown(0.0123) == "12.30"
    assert measures.SERVER_PEAK_RSS.shown(3 * 2**30) == "3,072"
    assert measures.SERVER_CPU.heading == "server CPU/token (µs)"


def test_names_are_unique_and_the_document_goes_by_them() -> None:
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    assert two_sides((1.0, 2.0)).as_document() == {"output_tokens_per_second": {"a": [1.0], "b": [2.0]}}
