"""Reading a compiled program: exchanges of every form, and work in loops."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from normlab.cost.program import Exchange, collectives, read
from normlab.cost.targets import find_target

# Written as XLA does for a TPU: layouts with tiles, one exchange of two arrays, two in two parts.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8,128], q: bf16[16]) -> (f32[8,128], bf16[64]) {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="all-reduce(x)"}
  %q = bf16[16]{0:T(256)(128)(2,1)S(1)} parameter(1)
  %all-reduce.7 = (f32[8,128]{1,0:T(8,128)}, bf16[16]) all-reduce(%p, /*index=1*/%q), to_apply=%sum
  %get-tuple-element = f32[8,128]{1,0:T(8,128)} get-tuple-element(%all-reduce.7), index=0
  %all-reduce-start = f32[8,128]{1,0:T(8,128)} all-reduce-start(%p), to_apply=%sum
  %all-reduce-done = f32[8,128]{1,0:T(8,128)} all-reduce-done(%all-reduce-start)
  %all-gather-start.1 = (bf16[16]{0}, bf16[64]{0:T(8)S(1)}) all-gather-start(%q), dimensions={0}
  %all-gather-done.1 = bf16[64]{0} all-gather-done(%all-gather-start.1)
  %reduce-scatter = f32[2,128]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%sum
  %collective-permute-start = (bf16[16]{0}, bf16[16]{0}, u32[], u32[]) collective-permute-start(%q)
  %all-to-all = (f32[8,128]{1,0}, f32[8,128]{1,0}) all-to-all(%p, %p), dimensions={0}
  ROOT %tuple = (f32[8,128]{1,0}, bf16[64]{0}) tuple(%get-tuple-element, %all-gather-done.1)
}
"""


def test_collectives_are_counted_whether_alone_together_or_in_two_parts():
    assert collectives(PROGRAM) == {
        "all-gather": Exchange(1, 32),
        "all-reduce": Exchange(2, 4096 + 32 + 4096),
        "all-to-all": Exchange(1, 2 * 4096),
        "collective-permute": Exchange(1, 32),
        "reduce-scatter": Exchange(1, 4096),
    }


def test_collectives_of_a_program_that_was_compiled_here():
    target = find_target("cpu:8")

    def exchange(x):
        total = lax.psum(x, "data")
        return total, lax.all_gather(x, "data"), lax.ppermute(x, "data", [(0, 1), (1, 0)])

    mapped = jax.shard_map(
        exchange,
        mesh=target.mesh,
        in_specs=P("data"),
        out_specs=(P(), P("data"), P("data")),
    )
    compiled = jax.jit(mapped).lower(jax.ShapeDtypeStruct((16, 4), jnp.float32)).compile()
    assert read(compiled).collectives == {
        "all-gather": Exchange(1, 32),
        "all-reduce": Exchange(1, 32),
        "collective-permute": Exchange(1, 32),
    }


def test_work_in_a_loop_counts_each_time_round():
    def once(x, w):
        return x @ w

    def nested(x, w):
        return lax.map(lambda x: lax.map(lambda x: x @ w, x), x)

    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 5, 16, 32), (32, 64)))
    unrolled = jax.jit(once).lower(jax.ShapeDtypeStruct((240, 32), jnp.float32), w).compile()
    looped = jax.jit(nested).lower(x, w).compile()
    work = 2 * 240 * 32 * 64
    assert read(unrolled).operations == work
    assert read(looped).operations == pytest.approx(work, rel=0.01)


def test_a_loop_carries_its_arrays_to_and_from_memory_once():
    x = jax.ShapeDtypeStruct((64, 1024), jnp.float32)
    carried = read(jax.jit(lambda x: lax.map(jnp.sin, x)).lower(x).compile()).traffic
    assert 2 * x.size * 4 <= carried < 4 * x.size * 4


def test_memory_at_the_peak_counts_what_is_given_away_once():
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    kept = read(jax.jit(lambda x: x + 1).lower(x).compile())
    given = read(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert (kept.memory, given.memory) == (8192, 4096)
    assert (kept.traffic, kept.operations, kept.seconds) == (8192, 1024, None)
