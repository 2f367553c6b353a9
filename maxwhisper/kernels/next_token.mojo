"""The likeliest token that the rules of decoding allow, so that a window is decoded without going back to Python for each token."""

from extensibility import InputTensor, OutputTensor, register
from extensibility import _MutableInputTensor as MutableInputTensor
from max.gpu.host import DeviceContext
from std.math import exp, log

from .tile import WIDTH, Floats

comptime Tokens = Pointer[Int64, MutAnyOrigin]


@always_inline
def largest(logits: Floats, mask: Floats, start: Int, end: Int) -> Float32:
    """Of logits + mask from start to end; the lowest number there is if there are none."""
    var all_largest = SIMD[DType.float32, WIDTH](Float32.MIN)
    var i = start
    while i + WIDTH <= end:
        all_largest = max(all_largest, logits.unsafe_load[width=WIDTH](i) + mask.unsafe_load[width=WIDTH](i))
        i += WIDTH
    var found = all_largest.reduce_max()
    while i < end:
        found = max(found, logits.unsafe_load(i) + mask.unsafe_load(i))
        i += 1
    return found


@always_inline
def first_like(logits: Floats, mask: Floats, start: Int, end: Int, wanted: Float32) -> Int:
    """Where logits + mask is what is wanted."""
    for i in range(start, end):
        if logits.unsafe_load(i) + mask.unsafe_load(i) == wanted:
            return i
    return end


@always_inline
def exponentials(logits: Floats, mask: Floats, start: Int, end: Int, top: Float32) -> Float32:
    """The sum of exp(logits + mask - top) from start to end."""
    var sums = SIMD[DType.float32, WIDTH](0)
    var i = start
    while i + WIDTH <= end:
        sums += exp(logits.unsafe_load[width=WIDTH](i) + mask.unsafe_load[width=WIDTH](i) - top)
        i += WIDTH
    var sum = sums.reduce_add()
    while i < end:
        sum += exp(logits.unsafe_load(i) + mask.unsafe_load(i) - top)
        i += 1
    return sum


@register("maxwhisper.next_token")
struct NextToken:
    """Appends a token to each sequence, as `maxwhisper.decoding` does with its filters and at temperature 0."""

    @staticmethod
    def execute(
        next: OutputTensor[dtype=DType.int64, rank=1, ...],  # [n_seq]
        n_unfinished: OutputTensor[dtype=DType.int64, rank=1, ...],  # [1]
        logits: InputTensor[dtype=DType.float32, rank=2, ...],  # [n_seq, n_vocab]
        tokens: MutableInputTensor[dtype=DType.int64, rank=3, ...],  # [n_audio, n_group, n_ctx + 1]
        sum_logprobs: MutableInputTensor[dtype=DType.float64, rank=2, ...],  # [n_audio, n_group]
        mask: InputTensor[dtype=DType.float32, rank=1, ...],  # [n_vocab], -inf for tokens that are never allowed
        rules: InputTensor[dtype=DType.int64, rank=1, ...],  # sample_begin, eot, and the first timestamp, n_vocab if there are none
        n_tokens: InputTensor[dtype=DType.int64, rank=1, ...],  # [1], so far
        ctx: DeviceContext,
    ) raises:
        var n_vocab = logits.dim_size(1)
        var sample_begin = Int(rules.unsafe_ptr().unsafe_load(0))
        var eot = Int(rules.unsafe_ptr().unsafe_load(1))
        var begin = Int(rules.unsafe_ptr().unsafe_load(2))
        var n = Int(n_tokens.unsafe_ptr().unsafe_load(0))
        var never = rebind[Floats](mask.unsafe_ptr())
        var unfinished = 0
        for row in range(logits.dim_size(0)):
            var before = tokens.unsafe_ptr().unsafe_offset(row * tokens.dim_size(2))
            var here = rebind[Floats](logits.unsafe_ptr()).unsafe_offset(row * n_vocab)
            var last = Int(before.unsafe_load(n - 1))
            var last_is_one = n - sample_begin >= 1 and last >= begin
            var previous_is_one = n - sample_begin < 2 or Int(before.unsafe_load(n - 2)) >= begin
            var first_text = 0
            var first_timestamp = begin
            for i in range(sample_begin, n):  # they never decrease, and a segment's end is later than its start
                var token = Int(before.unsafe_load(i))
                if token >= begin:
                    first_timestamp = token + (0 if last_is_one and not previous_is_one else 1)
            if last_is_one and previous_is_one:  # a pair is complete: text follows
                first_timestamp = n_vocab
            elif last_is_one:  # a pair has begun: its other half follows, or the end
                first_text = eot

            var likeliest_text = largest(here, never, first_text, begin)
            var likeliest_timestamp = largest(here, never, first_timestamp, n_vocab)
            var top = max(likeliest_text, likeliest_timestamp)
            var timestamps = exponentials(here, never, first_timestamp, n_vocab, top)
            var total = timestamps
            var chosen = 0
            if first_timestamp < n_vocab and log(timestamps) + top > likeliest_text:
                chosen = first_like(here, never, first_timestamp, n_vocab, likeliest_timestamp)
            else:
                total += exponentials(here, never, first_text, begin, top)
                if likeliest_text >= likeliest_timestamp:
                    chosen = first_like(here, never, first_text, begin, likeliest_text)
                else:
                    chosen = first_like(here, never, first_timestamp, n_vocab, likeliest_timestamp)
            if last == eot:
                chosen = eot
            else:
                var logprob = here.unsafe_load(chosen) - (top + log(total))
                sum_logprobs.unsafe_ptr().unsafe_store(row, sum_logprobs.unsafe_ptr().unsafe_load(row) + logprob.cast[DType.float64]())
            if chosen != eot:
                unfinished += 1
            before.unsafe_store(n, Int64(chosen))
            next.unsafe_ptr().unsafe_store(row, Int64(chosen))
        n_unfinished.unsafe_ptr().unsafe_store(0, Int64(unfinished))
