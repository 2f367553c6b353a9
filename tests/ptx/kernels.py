"""Small kernels in PTX, as LLVM writes it, for the interpreter's tests."""

# Adds two vectors, n elements of them: a thread each.
ADD = """
.visible .entry add(
	.param .u64 .ptr .align 1 add_param_0, .param .u64 .ptr .align 1 add_param_1,
	.param .u64 .ptr .align 1 add_param_2, .param .u32 add_param_3
)
{
	.reg .pred 	%p<2>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<8>;

	ld.param.b32 	%r1, [add_param_3];
	mov.u32 	%r2, %ctaid.x;
	mov.u32 	%r3, %ntid.x;
	mov.u32 	%r4, %tid.x;
	mad.lo.s32 	%r5, %r2, %r3, %r4;
	setp.ge.u32 	%p1, %r5, %r1;
	@%p1 bra 	$L__BB0_2;
	ld.param.b64 	%rd1, [add_param_0];
	ld.param.b64 	%rd2, [add_param_1];
	ld.param.b64 	%rd3, [add_param_2];
	mul.wide.u32 	%rd4, %r5, 4;
	add.s64 	%rd5, %rd2, %rd4;
	ld.global.b32 	%r6, [%rd5];
	add.s64 	%rd6, %rd3, %rd4;
	ld.global.nc.b32 	%r7, [%rd6];
	add.f32 	%r8, %r6, %r7;
	add.s64 	%rd7, %rd1, %rd4;
	st.global.b32 	[%rd7], %r8;
$L__BB0_2:
	ret;
}
"""

# Sums rows of 128 numbers, a block of 128 threads each: lanes by shuffles, then four warps through
# shared memory.
SUM = """
.visible .entry sum(.param .u64 .ptr .align 1 sum_param_0, .param .u64 .ptr .align 1 sum_param_1)
.maxntid 128
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<20>;
	.reg .b64 	%rd<8>;
	.shared .align 16 .b8 sum_parts[16];

	ld.param.b64 	%rd1, [sum_param_0];
	ld.param.b64 	%rd2, [sum_param_1];
	mov.u32 	%r1, %ctaid.x;
	mov.u32 	%r2, %tid.x;
	shl.b32 	%r3, %r1, 7;
	add.s32 	%r4, %r3, %r2;
	mul.wide.u32 	%rd3, %r4, 4;
	add.s64 	%rd4, %rd2, %rd3;
	ld.global.b32 	%r5, [%rd4];
	mov.b32 	%r6, 16;
$L__BB0_1:
	shfl.sync.bfly.b32 	%r7, %r5, %r6, 31, -1;
	add.f32 	%r5, %r5, %r7;
	shr.u32 	%r6, %r6, 1;
	setp.ne.b32 	%p1, %r6, 0;
	@%p1 bra 	$L__BB0_1;
	shr.u32 	%r8, %r2, 5;
	shl.b32 	%r9, %r8, 2;
	mov.b32 	%r10, sum_parts;
	add.s32 	%r11, %r10, %r9;
	and.b32 	%r12, %r2, 31;
	setp.ne.b32 	%p2, %r12, 0;
	@%p2 bra 	$L__BB0_3;
	st.shared.b32 	[%r11], %r5;
$L__BB0_3:
	bar.sync 	0;
	setp.ne.b32 	%p1, %r2, 0;
	@%p1 bra 	$L__BB0_5;
	ld.shared.v4.b32 	{%r13, %r14, %r15, %r16}, [sum_parts];
	add.f32 	%r17, %r13, %r14;
	add.f32 	%r18, %r15, %r16;
	add.f32 	%r19, %r17, %r18;
	mul.wide.u32 	%rd5, %r1, 4;
	add.s64 	%rd6, %rd1, %rd5;
	st.global.b32 	[%rd6], %r19;
$L__BB0_5:
	ret;
}
"""

# Adds the numbers 1 to n for each thread's own n: a loop that threads leave at different times.
TRIANGLE = """
.visible .entry triangle(.param .u64 .ptr .align 1 triangle_param_0, .param .u64 .ptr .align 1 triangle_param_1)
{
	.reg .pred 	%p<2>;
	.reg .b32 	%r<4>;
	.reg .b64 	%rd<6>;

	ld.param.b64 	%rd1, [triangle_param_0];
	ld.param.b64 	%rd2, [triangle_param_1];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd2, %rd3;
	ld.global.b32 	%r2, [%rd4];
	mov.b32 	%r3, 0;
$L__BB0_1:
	setp.eq.b32 	%p1, %r2, 0;
	@%p1 bra 	$L__BB0_3;
	add.s32 	%r3, %r3, %r2;
	add.s32 	%r2, %r2, -1;
	bra.uni 	$L__BB0_1;
$L__BB0_3:
	add.s64 	%rd5, %rd1, %rd3;
	st.global.b32 	[%rd5], %r3;
	ret;
}
"""
