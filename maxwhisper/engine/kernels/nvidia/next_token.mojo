"""The likeliest tokens that the decoding rules allow, in two kernels.

`survey_kernel` finds the likeliest of each share of the vocabulary. `append_token_kernel` takes the
likeliest of them; `rank_tokens_kernel` the few likeliest, for beam search.
"""

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA, block_dim, block_idx, lane_id, thread_idx, warp_id
from max.gpu.primitives import warp
from max.gpu.sync import barrier
from std.math import ceildiv, exp, log
from std.memory import unsafe_stack_allocation
from std.utils import StaticTuple
from std.utils.numerics import inf

from ..next_token import Rules, first_allowed, read_rules
from .launch import LOWEST, Doubles, Floats, Int32s, Int64s, Weights, let_next_start, wait_for_previous

comptime THREADS = 256
comptime WARPS = THREADS // 32
comptime TEXT_SHARES = 44  # shares of the text tokens, then shares of the timestamps
comptime SHARES = 48
comptime NONE = Int32.MAX


@fieldwise_init
struct Candidate(ImplicitlyCopyable, RegisterPassable):
    """A token and its logit, LOWEST for no token."""

    var logit: Float32
    var token: Int32

    @always_inline
    def take(mut self, other: Candidate):
        """Keep the likelier one; of equally likely ones the one with the lower number."""
        if other.logit > self.logit or (other.logit == self.logit and other.token < self.token):
            self = other

    @always_inline
    def likeliest_of_warp(self) -> Candidate:
        """Return the likeliest of all lanes."""
        var result = self
        comptime for i in range(5):
            result.take(
                Candidate(
                    warp.shuffle_xor(result.logit, UInt32(1 << i)), warp.shuffle_xor(result.token, UInt32(1 << i))
                )
            )
        return result


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(THREADS)))
def survey_kernel[
    n_vocab: Int, pdl: Bool
](
    found: Floats,  # [n_seq, SHARES, k]: the highest logits of each share, LOWEST if there are fewer
    found_tokens: Int32s,  # [n_seq, SHARES, k]: their tokens
    totals: Floats,  # [n_seq, SHARES]: the sum of exponentials relative to the highest
    logits: Floats,  # [n_seq, n_vocab]
    tokens: Int64s,  # [n_seq, row_length]
    n_tokens: Int64s,  # [1]: how many of them there are so far
    mask: Weights[DType.float32],  # [n_vocab], -inf for tokens that are never allowed
    rules: Int64s,  # [3]: sample_begin, eot, first timestamp
    row_length: Int32,
    k: Int32,
):
    """Find the k likeliest allowed tokens of a share of the vocabulary, the likeliest first."""
    comptime each = ceildiv(ceildiv(n_vocab, TEXT_SHARES), THREADS)
    var leaders = unsafe_stack_allocation[2 * WARPS, Float32, address_space=AddressSpace.SHARED]()
    var leaders_tokens = unsafe_stack_allocation[2 * WARPS, Int32, address_space=AddressSpace.SHARED]()
    var sums = unsafe_stack_allocation[WARPS, Float32, address_space=AddressSpace.SHARED]()
    var latests = unsafe_stack_allocation[WARPS, Int32, address_space=AddressSpace.SHARED]()
    var share = Int(block_idx.x)
    var row = Int(block_idx.y)
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var special = read_rules(rules, Int(n_tokens.unsafe_load(0)))
    var before = tokens.unsafe_offset(row * Int(row_length))

    # Step 1: which tokens are allowed. The latest timestamp decides, for which all threads look.
    var latest = Int32(-1)
    for i in range(special.sample_begin + Int(thread_idx.x), special.n, THREADS):
        if Int(before.unsafe_load(i)) >= special.begin:
            latest = Int32(i)
    latest = warp.max(latest)
    if lane_id() == 0:
        latests.unsafe_store(Int(warp_id()), latest)
    barrier()
    comptime for i in range(WARPS):
        latest = max(latest, latests.unsafe_load(i))
    var first_text, first_timestamp = first_allowed(before, special, n_vocab, Int(latest))
    var start = 0
    var end = 0
    if share < TEXT_SHARES:
        var size = ceildiv(special.begin, TEXT_SHARES)
        start = share * size
        end = min(start + size, special.begin)
        first_text = max(first_text, start)
    else:
        var size = ceildiv(n_vocab - special.begin, SHARES - TEXT_SHARES)
        start = special.begin + (share - TEXT_SHARES) * size
        end = min(start + size, n_vocab)
    var first = first_text if share < TEXT_SHARES else first_timestamp

    # Step 2: a thread's logits.
    var own = Array[Float32, each](fill=LOWEST)
    comptime for i in range(each):
        var token = start + i * THREADS + Int(thread_idx.x)
        if token >= first and token < end:
            own[i] = max(logits.unsafe_load(row * n_vocab + token) + mask.unsafe_load(token), LOWEST)

    # Step 3: the likeliest of the block, again and again.
    var to = (row * SHARES + share) * Int(k)
    for turn in range(Int(k)):
        var best = Candidate(LOWEST, NONE)
        comptime for i in range(each):
            best.take(Candidate(own[i], Int32(start + i * THREADS + Int(thread_idx.x))))
        var leader = best.likeliest_of_warp()
        var at = (turn & 1) * WARPS  # by turns, so that one barrier a turn is enough
        if lane_id() == 0:
            leaders.unsafe_store(at + Int(warp_id()), leader.logit)
            leaders_tokens.unsafe_store(at + Int(warp_id()), leader.token)
        barrier()
        comptime for i in range(WARPS):
            leader.take(Candidate(leaders.unsafe_load(at + i), leaders_tokens.unsafe_load(at + i)))
        if turn == 0:
            var total = Float32(0)
            comptime for i in range(each):
                total += exp(own[i] - leader.logit) if own[i] > LOWEST else Float32(0)
            total = warp.sum(total)
            if lane_id() == 0:
                sums.unsafe_store(Int(warp_id()), total)
        comptime for i in range(each):
            if Int32(start + i * THREADS + Int(thread_idx.x)) == leader.token:
                own[i] = LOWEST
        if thread_idx.x == 0:
            found.unsafe_store(to + turn, leader.logit)
            found_tokens.unsafe_store(to + turn, leader.token)
    barrier()
    if thread_idx.x == 0:
        var total = Float32(0)
        comptime for i in range(WARPS):
            total += sums.unsafe_load(i)
        totals.unsafe_store(row * SHARES + share, total)


@fieldwise_init
struct Kind(ImplicitlyCopyable, RegisterPassable):
    """The likeliest of some tokens, and the sum of all their exponentials relative to it."""

    var best: Candidate
    var total: Float32

    @always_inline
    def take(mut self, other: Kind):
        """Add tokens to these."""
        var highest = max(self.best.logit, other.best.logit)
        self.total = self.total * exp(self.best.logit - highest) + other.total * exp(other.best.logit - highest)
        self.best.take(other.best)

    @always_inline
    def all_of_warp(mut self):
        """Put the tokens of all lanes together."""
        comptime for i in range(5):
            self.take(
                Kind(
                    Candidate(
                        warp.shuffle_xor(self.best.logit, UInt32(1 << i)),
                        warp.shuffle_xor(self.best.token, UInt32(1 << i)),
                    ),
                    warp.shuffle_xor(self.total, UInt32(1 << i)),
                )
            )

    @always_inline
    def log_total(self) -> Float32:
        """Return the logarithm of the sum of all exponentials; about LOWEST if there are none."""
        return self.best.logit + log(self.total) if self.total > 0 else LOWEST


@always_inline
def texts_and_timestamps(found: Floats, found_tokens: Int32s, totals: Floats, row: Int, k: Int) -> Tuple[Kind, Kind]:
    """Put what `survey_kernel` found in a row together, in all lanes of a warp."""
    var texts = Kind(Candidate(LOWEST, NONE), 0)
    var timestamps = Kind(Candidate(LOWEST, NONE), 0)
    for share in range(Int(lane_id()), SHARES, 32):
        var at = row * SHARES + share
        var kind = Kind(
            Candidate(found.unsafe_load(at * k), found_tokens.unsafe_load(at * k)), totals.unsafe_load(at)
        )
        if share < TEXT_SHARES:
            texts.take(kind)
        else:
            timestamps.take(kind)
    texts.all_of_warp()
    timestamps.all_of_warp()
    return texts, timestamps


def append_token_kernel[
    pdl: Bool
](
    n_unfinished: Int64s,  # [1]
    tokens: Int64s,  # [n_seq, row_length], appended to
    sum_logprobs: Doubles,  # [n_seq], added to
    n_tokens: Int64s,  # [1], incremented
    found: Floats,  # as in `survey_kernel`, with k = 1
    found_tokens: Int32s,
    totals: Floats,
    rules: Int64s,
    row_length: Int32,
    n_seq: Int32,
):
    """Append the likeliest token to each sequence, a warp each, in one block.

    So n_tokens is read before it is written, and those that go on can be counted.
    """
    var unfinished = unsafe_stack_allocation[32, Int32, address_space=AddressSpace.SHARED]()
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var n = Int(n_tokens.unsafe_load(0))
    var eot = Int(rules.unsafe_load(1))
    var n_going_on = Int32(0)
    for row in range(Int(warp_id()), Int(n_seq), Int(block_dim.x) // 32):
        var texts, timestamps = texts_and_timestamps(found, found_tokens, totals, row, 1)
        if lane_id() == 0:
            # If timestamps together are likelier than any text, it is one of them.
            var only_timestamps = timestamps.log_total() > texts.best.logit
            var kind = timestamps
            if not only_timestamps:
                kind.take(texts)
            var chosen = Int(kind.best.token)
            var before = tokens.unsafe_offset(row * Int(row_length))
            if Int(before.unsafe_load(n - 1)) == eot:
                chosen = eot
            else:
                var logprob = kind.best.logit - kind.log_total()
                sum_logprobs.unsafe_store(row, sum_logprobs.unsafe_load(row) + logprob.cast[DType.float64]())
            before.unsafe_store(n, Int64(chosen))
            n_going_on += Int32(1) if chosen != eot else Int32(0)
    if lane_id() == 0:
        unfinished.unsafe_store(Int(warp_id()), n_going_on)
    barrier()
    if thread_idx.x == 0:
        n_going_on = 0
        for i in range(Int(block_dim.x) // 32):
            n_going_on += unfinished.unsafe_load(i)
        n_unfinished.unsafe_store(0, Int64(n_going_on))
        n_tokens.unsafe_store(0, Int64(n + 1))


def rank_tokens_kernel[
    pdl: Bool
](
    ranked: Int64s,  # [n_seq, k], the likeliest first
    logprobs: Floats,  # [n_seq, k]
    found: Floats,  # as in `survey_kernel`
    found_tokens: Int32s,
    totals: Floats,
    k_: Int32,
):
    """Find the k likeliest tokens of a sequence, a warp each, by merging the shares' lists.

    If fewer are allowed, forbidden ones follow, with -inf.
    """
    comptime each = ceildiv(SHARES, 32)
    let_next_start[pdl]()
    wait_for_previous[pdl]()
    var row = Int(block_idx.x)
    var k = Int(k_)
    var texts, timestamps = texts_and_timestamps(found, found_tokens, totals, row, k)
    var only_timestamps = timestamps.log_total() > texts.best.logit
    var all = timestamps
    if not only_timestamps:
        all.take(texts)
    var log_total = all.log_total()
    # A lane looks after some shares: the likeliest of each that is not taken yet, and how many are.
    var heads = Array[Candidate, each](fill=Candidate(LOWEST, NONE))
    var n_taken = Array[Int, each](fill=0)
    comptime for i in range(each):
        var share = i * 32 + Int(lane_id())
        if share < SHARES and (share >= TEXT_SHARES or not only_timestamps):
            var at = (row * SHARES + share) * k
            heads[i] = Candidate(found.unsafe_load(at), found_tokens.unsafe_load(at))
    var filler = Int32(0)
    for turn in range(k):
        var best = heads[0]
        comptime for i in range(1, each):
            best.take(heads[i])
        best = best.likeliest_of_warp()
        comptime for i in range(each):
            if heads[i].token == best.token and best.logit > LOWEST:
                n_taken[i] += 1
                heads[i] = Candidate(LOWEST, NONE)
                if n_taken[i] < k:
                    var at = (row * SHARES + i * 32 + Int(lane_id())) * k + n_taken[i]
                    heads[i] = Candidate(found.unsafe_load(at), found_tokens.unsafe_load(at))
        if lane_id() == 0:
            var logprob = best.logit - log_total
            if best.logit <= LOWEST:
                logprob = -inf[DType.float32]()
                best.token = filler
                var earlier = 0
                while earlier < turn:  # the lowest number that is not taken
                    if ranked.unsafe_load(row * k + earlier) == Int64(best.token):
                        best.token += 1
                        earlier = -1
                    earlier += 1
                filler = best.token + 1
            ranked.unsafe_store(row * k + turn, Int64(best.token))
            logprobs.unsafe_store(row * k + turn, logprob)
