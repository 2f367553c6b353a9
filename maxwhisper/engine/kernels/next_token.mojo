"""The most likely tokens that the decoding rules allow.

With these kernels a graph decodes a window without returning to Python for each token.
"""

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
    """Return the largest of logits + mask from start to end, or -inf if start >= end."""
    var all_largest = SIMD[DType.float32, WIDTH](Float32.MIN)
    var i = start
    while i + WIDTH <= end:
        all_largest = max(all_largest, logits.unsafe_load[width=WIDTH](i) + mask.unsafe_load[width=WIDTH](i))
        i += WIDTH
    var result = all_largest.reduce_max()
    while i < end:
        result = max(result, logits.unsafe_load(i) + mask.unsafe_load(i))
        i += 1
    return result


@always_inline
def first_like(logits: Floats, mask: Floats, start: Int, end: Int, wanted: Float32) -> Int:
    """Return the first index from start on at which logits + mask equals `wanted`, or end."""
    for i in range(start, end):
        if logits.unsafe_load(i) + mask.unsafe_load(i) == wanted:
            return i
    return end


@always_inline
def exponentials(logits: Floats, mask: Floats, start: Int, end: Int, top: Float32) -> Float32:
    """Return the sum of exp(logits + mask - top) from start to end."""
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
    """The special tokens, and the number of tokens of a sequence."""

    var sample_begin: Int  # the number of tokens that were not sampled
    var eot: Int  # the end token
    var begin: Int  # the first timestamp token, or n_vocab without timestamps
    var n: Int  # the number of tokens so far


@always_inline
def read_rules(rules: Tokens, n: Int) -> Rules:
    """Convert rules as `maxwhisper.engine.ops` takes them, for n tokens so far."""
    return Rules(Int(rules.unsafe_load(0)), Int(rules.unsafe_load(1)), Int(rules.unsafe_load(2)), n)


@always_inline
def latest_timestamp(before: Tokens, rules: Rules) -> Int:
    """Return the index of the last timestamp that was sampled, or -1 if there is none."""
    for i in range(rules.n - 1, rules.sample_begin - 1, -1):
        if Int(before.unsafe_load(i)) >= rules.begin:
            return i
    return -1


@always_inline
def first_allowed(before: Tokens, rules: Rules, n_vocab: Int, latest: Int) -> Tuple[Int, Int]:
    """Return the first text token and the first timestamp token that are allowed after a sequence.

    The second is n_vocab if no timestamp is allowed.

    Args:
        before: the sequence.
        rules: the special tokens.
        n_vocab: the number of all tokens.
        latest: as from `latest_timestamp`.
    """
    var last = Int(before.unsafe_load(rules.n - 1))
    var last_is_one = rules.n - rules.sample_begin >= 1 and last >= rules.begin
    var previous_is_one = rules.n - rules.sample_begin < 2 or Int(before.unsafe_load(rules.n - 2)) >= rules.begin
    if last_is_one and previous_is_one:  # a pair of timestamps is complete; text must follow
        return 0, n_vocab
    var opens = last_is_one and not previous_is_one  # a pair has begun; a timestamp or the end must follow
    var first_timestamp = rules.begin
    if rules.begin < n_vocab and latest >= 0:
        # Timestamps never decrease, and a segment's end is later than its start.
        first_timestamp = Int(before.unsafe_load(latest)) + (0 if opens else 1)
    return rules.eot if opens else 0, first_timestamp


@register("maxwhisper.next_token")
struct NextToken:
    """Append a token to each sequence, as `maxwhisper.decoding` does at temperature 0."""

    @staticmethod
    def execute(
        next: OutputTensor[dtype=DType.int64, rank=1, ...],  # [n_seq]
        n_unfinished: OutputTensor[dtype=DType.int64, rank=1, ...],  # [1]
        logits: InputTensor[dtype=DType.float32, rank=2, ...],  # [n_seq, n_vocab]
        tokens: MutableInputTensor[dtype=DType.int64, rank=3, ...],  # [n_audio, n_group, n_ctx + 1]
        sum_logprobs: MutableInputTensor[dtype=DType.float64, rank=2, ...],  # [n_audio, n_group]
        mask: InputTensor[dtype=DType.float32, rank=1, ...],  # [n_vocab], -inf for tokens that are never allowed
        rules: InputTensor[dtype=DType.int64, rank=1, ...],  # [3]: sample_begin, eot, first timestamp
        n_tokens: InputTensor[dtype=DType.int64, rank=1, ...],  # [1], the number of tokens so far
        ctx: DeviceContext,
    ) raises:
        var n_vocab = logits.dim_size(1)
        var special = read_rules(rebind[Tokens](rules.unsafe_ptr()), Int(n_tokens.unsafe_ptr().unsafe_load(0)))
        var mask_values = rebind[Floats](mask.unsafe_ptr())
        var unfinished = 0
        for row in range(logits.dim_size(0)):
            var before = rebind[Tokens](tokens.unsafe_ptr()).unsafe_offset(row * tokens.dim_size(2))
            var row_logits = rebind[Floats](logits.unsafe_ptr()).unsafe_offset(row * n_vocab)
            var first_text, first_timestamp = first_allowed(before, special, n_vocab, latest_timestamp(before, special))
            var best_text = largest(row_logits, mask_values, first_text, special.begin)
            var best_timestamp = largest(row_logits, mask_values, first_timestamp, n_vocab)
            var top = max(best_text, best_timestamp)
            var timestamps = exponentials(row_logits, mask_values, first_timestamp, n_vocab, top)
            var total = timestamps
            var chosen = 0
            if first_timestamp < n_vocab and log(timestamps) + top > best_text:
                chosen = first_like(row_logits, mask_values, first_timestamp, n_vocab, best_timestamp)
            else:
                total += exponentials(row_logits, mask_values, first_text, special.begin, top)
                if best_text >= best_timestamp:
                    chosen = first_like(row_logits, mask_values, first_text, special.begin, best_text)
                else:
                    chosen = first_like(row_logits, mask_values, first_timestamp, n_vocab, best_timestamp)
            if Int(before.unsafe_load(special.n - 1)) == special.eot:
                chosen = special.eot
            else:
                var logprob = row_logits.unsafe_load(chosen) - (top + log(total))
                sum_logprobs.unsafe_ptr().unsafe_store(row, sum_logprobs.unsafe_ptr().unsafe_load(row) + logprob.cast[DType.float64]())
            if chosen != special.eot:
                unfinished += 1
            before.unsafe_store(special.n, Int64(chosen))
            next.unsafe_ptr().unsafe_store(row, Int64(chosen))
        n_unfinished.unsafe_ptr().unsafe_store(0, Int64(unfinished))


@always_inline
def keep_largest(ids: Tokens, values: Floats, n: Int, logits: Floats, mask: Floats, start: Int, end: Int):
    """Insert logits + mask from start to end into the n largest so far.

    They are in descending order. If logits are equal, the first token comes first.
    """
    var i = start
    while i < end:
        var width = WIDTH if i + WIDTH <= end else 1
        var may_change = True
        if width == WIDTH:
            var masked = logits.unsafe_load[width=WIDTH](i) + mask.unsafe_load[width=WIDTH](i)
            may_change = masked.reduce_max() > values.unsafe_load(n - 1)
        if may_change:
            for token in range(i, i + width):
                var value = logits.unsafe_load(token) + mask.unsafe_load(token)
                if value > values.unsafe_load(n - 1):
                    var slot = n - 1
                    while slot > 0 and values.unsafe_load(slot - 1) < value:
                        values.unsafe_store(slot, values.unsafe_load(slot - 1))
                        ids.unsafe_store(slot, ids.unsafe_load(slot - 1))
                        slot -= 1
                    values.unsafe_store(slot, value)
                    ids.unsafe_store(slot, Int64(token))
        i += width


@register("maxwhisper.top_k_tokens")
struct TopKTokens:
    """Find the most likely allowed tokens of each sequence, and their log-probabilities.

    The rules are those of the filters of `maxwhisper.decoding`.
    """

    @staticmethod
    def execute(
        ids: OutputTensor[dtype=DType.int64, rank=2, ...],  # [n_seq, n_group + 1], the most likely first
        logprobs: OutputTensor[dtype=DType.float32, rank=2, ...],
        logits: InputTensor[dtype=DType.float32, rank=2, ...],  # inputs are as in `NextToken`
        tokens: InputTensor[dtype=DType.int64, rank=3, ...],  # [n_audio, n_group, n]
        mask: InputTensor[dtype=DType.float32, rank=1, ...],
        rules: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n_vocab = logits.dim_size(1)
        var n = tokens.dim_size(2)
        var k = ids.dim_size(1)
        var special = read_rules(rebind[Tokens](rules.unsafe_ptr()), n)
        var mask_values = rebind[Floats](mask.unsafe_ptr())
        var all_tokens = rebind[Tokens](tokens.unsafe_ptr())
        var all_logits = rebind[Floats](logits.unsafe_ptr())
        var all_ids = rebind[Tokens](ids.unsafe_ptr())
        var all_values = rebind[Floats](logprobs.unsafe_ptr())

        def of_sequence(row: Int) {
            imm n_vocab, imm n, imm k, imm special, imm mask_values, imm all_tokens, imm all_logits, imm all_ids, imm all_values
        }:
            var row_logits = all_logits.unsafe_offset(row * n_vocab)
            var row_ids = all_ids.unsafe_offset(row * k)
            var values = all_values.unsafe_offset(row * k)
            var before = all_tokens.unsafe_offset(row * n)
            var first_text, first_timestamp = first_allowed(before, special, n_vocab, latest_timestamp(before, special))
            var best_text = largest(row_logits, mask_values, first_text, special.begin)
            var top = max(best_text, largest(row_logits, mask_values, first_timestamp, n_vocab))
            var total = exponentials(row_logits, mask_values, first_timestamp, n_vocab, top)
            for i in range(k):
                row_ids.unsafe_store(i, -1)
                values.unsafe_store(i, -inf[DType.float32]())
            if not (first_timestamp < n_vocab and log(total) + top > best_text):
                total += exponentials(row_logits, mask_values, first_text, special.begin, top)
                keep_largest(row_ids, values, k, row_logits, mask_values, first_text, special.begin)
            keep_largest(row_ids, values, k, row_logits, mask_values, first_timestamp, n_vocab)
            var filler = 0
            for i in range(k):
                if row_ids.unsafe_load(i) >= 0:
                    values.unsafe_store(i, values.unsafe_load(i) - (top + log(total)))
                    continue
                var is_taken = True  # fewer tokens are allowed, so forbidden ones follow with -inf
                while is_taken:
                    is_taken = False
                    for j in range(i):
                        is_taken = is_taken or Int(row_ids.unsafe_load(j)) == filler
                    filler += 1
                row_ids.unsafe_store(i, Int64(filler - 1))

        sync_parallelize(of_sequence, logits.dim_size(0))


@register("maxwhisper.first_allowed")
struct FirstAllowed:
    """Compute `first_allowed` of each sequence, on any device."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        first: OutputTensor[dtype=DType.int64, rank=2, ...],  # [2, n_seq]: text, timestamps
        logits: InputTensor[dtype=DType.float32, rank=2, ...],  # as in `NextToken`
        tokens: InputTensor[dtype=DType.int64, rank=3, ...],
        rules: InputTensor[dtype=DType.int64, rank=1, ...],
        n_tokens: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var destination = first.unsafe_ptr()
        var all_tokens = rebind[Tokens](tokens.unsafe_ptr())
        var row_length = tokens.dim_size(2)
        var rule_values = rebind[Tokens](rules.unsafe_ptr())
        var n_tokens_pointer = n_tokens.unsafe_ptr()
        var n_seq = logits.dim_size(0)
        var n_vocab = logits.dim_size(1)

        @always_inline
        def find[
            width: Int, alignment: Int = 1
        ](index: Coord) {var destination, var all_tokens, var row_length, var rule_values, var n_tokens_pointer, var n_seq, var n_vocab}:
            var row = Int(index[0].value())
            var special = read_rules(rule_values, Int(n_tokens_pointer.unsafe_load(0)))
            var before = all_tokens.unsafe_offset(row * row_length)
            var text, timestamp = first_allowed(before, special, n_vocab, latest_timestamp(before, special))
            destination.unsafe_store(row, Int64(text))
            destination.unsafe_store(n_seq + row, Int64(timestamp))

        elementwise[1, target=target](find, Coord(n_seq), ctx)


@register("maxwhisper.allowed_logits")
struct AllowedLogits:
    """Compute logits + mask of text tokens and of timestamp tokens separately.

    Tokens that are not allowed have the lowest finite number.
    """

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
        var destination = kinds.unsafe_ptr()
        var all_logits = logits.unsafe_ptr()
        var mask_values = mask.unsafe_ptr()
        var rule_values = rules.unsafe_ptr()
        var firsts = first.unsafe_ptr()
        var n_vocab = logits.dim_size(1)
        var n = logits.dim_size(0) * n_vocab

        @always_inline
        def pick[
            width: Int, alignment: Int = 1
        ](index: Coord) {var destination, var all_logits, var mask_values, var rule_values, var firsts, var n_vocab, var n}:
            var kind, at = divmod(Int(index[0].value()), n)
            var row, token = divmod(at, n_vocab)
            var begin = Int(rule_values.unsafe_load(2))
            var is_of_kind = token < begin if kind == 0 else True
            var allowed = is_of_kind and token >= Int(firsts.unsafe_load(kind * (n // n_vocab) + row))
            var value = all_logits.unsafe_load(at) + mask_values.unsafe_load(token)
            destination.unsafe_store(kind * n + at, max(value, Float32.MIN_FINITE) if allowed else Float32.MIN_FINITE)

        elementwise[1, target=target](pick, Coord(2 * n), ctx)


@register("maxwhisper.choose_token")
struct ChooseToken:
    """Append the most likely text token or the most likely timestamp to each sequence.

    The rules decide which of the two, as in `NextToken`.
    """

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
        likeliest: InputTensor[dtype=DType.int64, rank=3, ...],  # [2, n_seq, 1], of text and of timestamps, as top and total
        top: InputTensor[dtype=DType.float32, rank=3, ...],
        total: InputTensor[dtype=DType.float32, rank=3, ...],  # of exp(logits - top)
        ctx: DeviceContext,
    ) raises:
        var destination = next.unsafe_ptr()
        var unfinished_pointer = n_unfinished.unsafe_ptr()
        var all_logits = logits.unsafe_ptr()
        var all_tokens = rebind[Tokens](tokens.unsafe_ptr())
        var sums = sum_logprobs.unsafe_ptr()
        var rule_values = rebind[Tokens](rules.unsafe_ptr())
        var n_tokens_pointer = n_tokens.unsafe_ptr()
        var best = likeliest.unsafe_ptr()
        var tops = top.unsafe_ptr()
        var totals = total.unsafe_ptr()
        var row_length = tokens.dim_size(2)
        var n_seq = logits.dim_size(0)
        var n_vocab = logits.dim_size(1)

        @always_inline
        def choose[
            width: Int, alignment: Int = 1
        ](index: Coord) {
            var destination,
            var unfinished_pointer,
            var all_logits,
            var all_tokens,
            var sums,
            var rule_values,
            var n_tokens_pointer,
            var best,
            var tops,
            var totals,
            var row_length,
            var n_seq,
            var n_vocab,
        }:
            """Process all sequences (they are few) in one thread, which counts the unfinished ones."""
            var special = read_rules(rule_values, Int(n_tokens_pointer.unsafe_load(0)))
            var unfinished = 0
            for row in range(n_seq):
                var before = all_tokens.unsafe_offset(row * row_length)
                var text = tops.unsafe_load(row)
                var timestamp = tops.unsafe_load(n_seq + row)
                var timestamps = timestamp + log(totals.unsafe_load(n_seq + row))
                var any_timestamp = timestamp > Float32.MIN_FINITE
                var chosen = Int(best.unsafe_load(row))
                var all_texts = text + log(totals.unsafe_load(row))
                var log_total = timestamps
                if any_timestamp and timestamps > text:
                    chosen = Int(best.unsafe_load(n_seq + row))
                else:
                    var highest = max(all_texts, timestamps)
                    log_total = highest + log(exp(all_texts - highest) + (exp(timestamps - highest) if any_timestamp else 0))
                if Int(before.unsafe_load(special.n - 1)) == special.eot:
                    chosen = special.eot
                else:
                    var logprob = all_logits.unsafe_load(row * n_vocab + chosen) - log_total
                    sums.unsafe_store(row, sums.unsafe_load(row) + logprob.cast[DType.float64]())
                if chosen != special.eot:
                    unfinished += 1
                before.unsafe_store(special.n, Int64(chosen))
                destination.unsafe_store(row, Int64(chosen))
            unfinished_pointer.unsafe_store(0, Int64(unfinished))

        elementwise[1, target=target](choose, Coord(1), ctx)
