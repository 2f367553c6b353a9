"""The likeliest token that the rules of decoding allow, so that a window is decoded without going back to Python for each token."""

from extensibility import InputTensor, OutputTensor, register
from extensibility import _MutableInputTensor as MutableInputTensor
from layout import Coord
from max.algorithm import elementwise, sync_parallelize
from max.gpu.host import DeviceContext
from std.math import exp, log
from std.utils.numerics import inf

from .tile import WIDTH, Floats

comptime Tokens = Pointer[Int64, MutAnyOrigin]


@always_inline
def largest(logits: Floats, mask: Floats, start: Int, end: Int) -> Float32:
    """Of logits + mask from start to end; -inf if there are none."""
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


@fieldwise_init
struct Rules(ImplicitlyCopyable, RegisterPassable):
    """What is known of the vocabulary, and how many tokens there are."""

    var sample_begin: Int  # how many of them were not sampled
    var eot: Int
    var begin: Int  # the first timestamp; n_vocab if there are none
    var n: Int


@always_inline
def read_rules(rules: Tokens, n: Int) -> Rules:
    """Of rules as `maxwhisper.engine.ops.next_token` takes them, and n tokens."""
    return Rules(Int(rules.unsafe_load(0)), Int(rules.unsafe_load(1)), Int(rules.unsafe_load(2)), n)


@always_inline
def first_allowed(before: Tokens, rules: Rules, n_vocab: Int) -> Tuple[Int, Int]:
    """The first text, and the first timestamp, that may follow the tokens of a sequence; n_vocab where there is no timestamp."""
    var last = Int(before.unsafe_load(rules.n - 1))
    var last_is_one = rules.n - rules.sample_begin >= 1 and last >= rules.begin
    var previous_is_one = rules.n - rules.sample_begin < 2 or Int(before.unsafe_load(rules.n - 2)) >= rules.begin
    if last_is_one and previous_is_one:  # a pair is complete: text follows
        return 0, n_vocab
    var opens = last_is_one and not previous_is_one  # a pair has begun: its other half follows, or the end
    var first_timestamp = rules.begin
    if rules.begin < n_vocab:
        for back in range(1, rules.n - rules.sample_begin + 1):  # they never decrease, and a segment's end is later than its start
            var token = Int(before.unsafe_load(rules.n - back))
            if token >= rules.begin:
                first_timestamp = token + (0 if opens else 1)
                break
    return rules.eot if opens else 0, first_timestamp


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
        var known = read_rules(rebind[Tokens](rules.unsafe_ptr()), Int(n_tokens.unsafe_ptr().unsafe_load(0)))
        var never = rebind[Floats](mask.unsafe_ptr())
        var unfinished = 0
        for row in range(logits.dim_size(0)):
            var before = rebind[Tokens](tokens.unsafe_ptr()).unsafe_offset(row * tokens.dim_size(2))
            var here = rebind[Floats](logits.unsafe_ptr()).unsafe_offset(row * n_vocab)
            var first_text, first_timestamp = first_allowed(before, known, n_vocab)
            var likeliest_text = largest(here, never, first_text, known.begin)
            var likeliest_timestamp = largest(here, never, first_timestamp, n_vocab)
            var top = max(likeliest_text, likeliest_timestamp)
            var timestamps = exponentials(here, never, first_timestamp, n_vocab, top)
            var total = timestamps
            var chosen = 0
            if first_timestamp < n_vocab and log(timestamps) + top > likeliest_text:
                chosen = first_like(here, never, first_timestamp, n_vocab, likeliest_timestamp)
            else:
                total += exponentials(here, never, first_text, known.begin, top)
                if likeliest_text >= likeliest_timestamp:
                    chosen = first_like(here, never, first_text, known.begin, likeliest_text)
                else:
                    chosen = first_like(here, never, first_timestamp, n_vocab, likeliest_timestamp)
            if Int(before.unsafe_load(known.n - 1)) == known.eot:
                chosen = known.eot
            else:
                var logprob = here.unsafe_load(chosen) - (top + log(total))
                sum_logprobs.unsafe_ptr().unsafe_store(row, sum_logprobs.unsafe_ptr().unsafe_load(row) + logprob.cast[DType.float64]())
            if chosen != known.eot:
                unfinished += 1
            before.unsafe_store(known.n, Int64(chosen))
            next.unsafe_ptr().unsafe_store(row, Int64(chosen))
        n_unfinished.unsafe_ptr().unsafe_store(0, Int64(unfinished))


@always_inline
def keep_largest(ids: Tokens, values: Floats, n: Int, logits: Floats, mask: Floats, start: Int, end: Int):
    """Put logits + mask from start to end among the n largest so far, which are in descending order; of equal ones the first."""
    var i = start
    while i < end:
        var width = WIDTH if i + WIDTH <= end else 1
        var worth_a_look = True
        if width == WIDTH:
            var here = logits.unsafe_load[width=WIDTH](i) + mask.unsafe_load[width=WIDTH](i)
            worth_a_look = here.reduce_max() > values.unsafe_load(n - 1)
        if worth_a_look:
            for token in range(i, i + width):
                var value = logits.unsafe_load(token) + mask.unsafe_load(token)
                if value > values.unsafe_load(n - 1):
                    var place = n - 1
                    while place > 0 and values.unsafe_load(place - 1) < value:
                        values.unsafe_store(place, values.unsafe_load(place - 1))
                        ids.unsafe_store(place, ids.unsafe_load(place - 1))
                        place -= 1
                    values.unsafe_store(place, value)
                    ids.unsafe_store(place, Int64(token))
        i += width


@register("maxwhisper.top_k_tokens")
struct TopKTokens:
    """Of each sequence the likeliest tokens that may follow, as `maxwhisper.decoding`'s filters have it, and their log-probabilities."""

    @staticmethod
    def execute(
        ids: OutputTensor[dtype=DType.int64, rank=2, ...],  # [n_seq, n_group + 1], the likeliest first
        logprobs: OutputTensor[dtype=DType.float32, rank=2, ...],
        logits: InputTensor[dtype=DType.float32, rank=2, ...],  # as in `NextToken`, as are the others
        tokens: InputTensor[dtype=DType.int64, rank=3, ...],  # [n_audio, n_group, n]
        mask: InputTensor[dtype=DType.float32, rank=1, ...],
        rules: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_vocab = logits.dim_size(1)
        var n = tokens.dim_size(2)
        var n_kept = ids.dim_size(1)
        var known = read_rules(rebind[Tokens](rules.unsafe_ptr()), n)
        var never = rebind[Floats](mask.unsafe_ptr())
        var all_tokens = rebind[Tokens](tokens.unsafe_ptr())
        var all_logits = rebind[Floats](logits.unsafe_ptr())
        var all_ids = rebind[Tokens](ids.unsafe_ptr())
        var all_values = rebind[Floats](logprobs.unsafe_ptr())

        def of_sequence(row: Int) {
            imm n_vocab, imm n, imm n_kept, imm known, imm never, imm all_tokens, imm all_logits, imm all_ids, imm all_values
        }:
            var here = all_logits.unsafe_offset(row * n_vocab)
            var found = all_ids.unsafe_offset(row * n_kept)
            var values = all_values.unsafe_offset(row * n_kept)
            var first_text, first_timestamp = first_allowed(all_tokens.unsafe_offset(row * n), known, n_vocab)
            var likeliest_text = largest(here, never, first_text, known.begin)
            var top = max(likeliest_text, largest(here, never, first_timestamp, n_vocab))
            var total = exponentials(here, never, first_timestamp, n_vocab, top)
            for i in range(n_kept):
                found.unsafe_store(i, -1)
                values.unsafe_store(i, -inf[DType.float32]())
            if not (first_timestamp < n_vocab and log(total) + top > likeliest_text):
                total += exponentials(here, never, first_text, known.begin, top)
                keep_largest(found, values, n_kept, here, never, first_text, known.begin)
            keep_largest(found, values, n_kept, here, never, first_timestamp, n_vocab)
            var spare = 0
            for i in range(n_kept):
                if found.unsafe_load(i) >= 0:
                    values.unsafe_store(i, values.unsafe_load(i) - (top + log(total)))
                    continue
                var is_taken = True  # fewer are allowed: others stand in, that are not, at -inf
                while is_taken:
                    is_taken = False
                    for j in range(i):
                        is_taken = is_taken or Int(found.unsafe_load(j)) == spare
                    spare += 1
                found.unsafe_store(i, Int64(spare - 1))

        sync_parallelize(of_sequence, logits.dim_size(0))


@register("maxwhisper.first_allowed")
struct FirstAllowed:
    """`first_allowed` of each sequence, wherever the graph runs."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        first: OutputTensor[dtype=DType.int64, rank=2, ...],  # [2, n_seq]: texts, timestamps
        logits: InputTensor[dtype=DType.float32, rank=2, ...],  # as in `NextToken`
        tokens: InputTensor[dtype=DType.int64, rank=3, ...],
        rules: InputTensor[dtype=DType.int64, rank=1, ...],
        n_tokens: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var to = first.unsafe_ptr()
        var all_tokens = rebind[Tokens](tokens.unsafe_ptr())
        var room = tokens.dim_size(2)
        var numbers = rebind[Tokens](rules.unsafe_ptr())
        var count = n_tokens.unsafe_ptr()
        var n_seq = logits.dim_size(0)
        var n_vocab = logits.dim_size(1)

        @always_inline
        def find[
            width: Int, alignment: Int = 1
        ](index: Coord) {var to, var all_tokens, var room, var numbers, var count, var n_seq, var n_vocab}:
            var row = Int(index[0].value())
            var text, timestamp = first_allowed(all_tokens.unsafe_offset(row * room), read_rules(numbers, Int(count.unsafe_load(0))), n_vocab)
            to.unsafe_store(row, Int64(text))
            to.unsafe_store(n_seq + row, Int64(timestamp))

        elementwise[1, target=target](find, Coord(n_seq), ctx)


@register("maxwhisper.allowed_logits")
struct AllowedLogits:
    """Logits + mask of texts, and of timestamps, and the lowest finite number in place of those that may not follow."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        kinds: OutputTensor[dtype=DType.float32, rank=3, ...],  # [2, n_seq, n_vocab]
        logits: InputTensor[dtype=DType.float32, rank=2, ...],
        mask: InputTensor[dtype=DType.float32, rank=1, ...],
        rules: InputTensor[dtype=DType.int64, rank=1, ...],
        first: InputTensor[dtype=DType.int64, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        var to = kinds.unsafe_ptr()
        var here = logits.unsafe_ptr()
        var never = mask.unsafe_ptr()
        var numbers = rules.unsafe_ptr()
        var firsts = first.unsafe_ptr()
        var n_vocab = logits.dim_size(1)
        var n = logits.dim_size(0) * n_vocab

        @always_inline
        def pick[
            width: Int, alignment: Int = 1
        ](index: Coord) {var to, var here, var never, var numbers, var firsts, var n_vocab, var n}:
            var kind, at = divmod(Int(index[0].value()), n)
            var row, token = divmod(at, n_vocab)
            var begin = Int(numbers.unsafe_load(2))
            var is_of_kind = token < begin if kind == 0 else True
            var allowed = is_of_kind and token >= Int(firsts.unsafe_load(kind * (n // n_vocab) + row))
            var value = here.unsafe_load(at) + never.unsafe_load(token)
            to.unsafe_store(kind * n + at, max(value, Float32.MIN_FINITE) if allowed else Float32.MIN_FINITE)

        elementwise[1, target=target](pick, Coord(2 * n), ctx)


@register("maxwhisper.choose_token")
struct ChooseToken:
    """Of the likeliest text and the likeliest timestamp of each sequence the one that the rules take, appended as `NextToken` does."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        next: OutputTensor[dtype=DType.int64, rank=1, ...],
        n_unfinished: OutputTensor[dtype=DType.int64, rank=1, ...],
        logits: InputTensor[dtype=DType.float32, rank=2, ...],
        tokens: MutableInputTensor[dtype=DType.int64, rank=3, ...],
        sum_logprobs: MutableInputTensor[dtype=DType.float64, rank=2, ...],
        rules: InputTensor[dtype=DType.int64, rank=1, ...],
        n_tokens: InputTensor[dtype=DType.int64, rank=1, ...],
        likeliest: InputTensor[dtype=DType.int64, rank=3, ...],  # [2, n_seq, 1], of texts and of timestamps, as are the others
        top: InputTensor[dtype=DType.float32, rank=3, ...],
        total: InputTensor[dtype=DType.float32, rank=3, ...],  # of exp(logits - top)
        ctx: DeviceContext,
    ) raises:
        var to = next.unsafe_ptr()
        var left = n_unfinished.unsafe_ptr()
        var here = logits.unsafe_ptr()
        var all_tokens = rebind[Tokens](tokens.unsafe_ptr())
        var sums = sum_logprobs.unsafe_ptr()
        var numbers = rebind[Tokens](rules.unsafe_ptr())
        var count = n_tokens.unsafe_ptr()
        var best = likeliest.unsafe_ptr()
        var tops = top.unsafe_ptr()
        var totals = total.unsafe_ptr()
        var room = tokens.dim_size(2)
        var n_seq = logits.dim_size(0)
        var n_vocab = logits.dim_size(1)

        @always_inline
        def choose[
            width: Int, alignment: Int = 1
        ](index: Coord) {
            var to,
            var left,
            var here,
            var all_tokens,
            var sums,
            var numbers,
            var count,
            var best,
            var tops,
            var totals,
            var room,
            var n_seq,
            var n_vocab,
        }:
            """One thread does all sequences, which are few, so that it can count those that go on."""
            var known = read_rules(numbers, Int(count.unsafe_load(0)))
            var unfinished = 0
            for row in range(n_seq):
                var before = all_tokens.unsafe_offset(row * room)
                var text = tops.unsafe_load(row)
                var timestamp = tops.unsafe_load(n_seq + row)
                var timestamps = timestamp + log(totals.unsafe_load(n_seq + row))
                var any_timestamp = timestamp > Float32.MIN_FINITE
                var chosen = Int(best.unsafe_load(row))
                var all_texts = text + log(totals.unsafe_load(row))
                var everything = timestamps
                if any_timestamp and timestamps > text:
                    chosen = Int(best.unsafe_load(n_seq + row))
                else:
                    var highest = max(all_texts, timestamps)
                    everything = highest + log(exp(all_texts - highest) + (exp(timestamps - highest) if any_timestamp else 0))
                if Int(before.unsafe_load(known.n - 1)) == known.eot:
                    chosen = known.eot
                else:
                    var logprob = here.unsafe_load(row * n_vocab + chosen) - everything
                    sums.unsafe_store(row, sums.unsafe_load(row) + logprob.cast[DType.float64]())
                if chosen != known.eot:
                    unfinished += 1
                before.unsafe_store(known.n, Int64(chosen))
                to.unsafe_store(row, Int64(chosen))
            left.unsafe_store(0, Int64(unfinished))

        elementwise[1, target=target](choose, Coord(1), ctx)
