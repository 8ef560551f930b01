"""Warp kernels of fits: where a field begins, and the steps that field and motion take.

One source for CPU and CUDA. Knows nothing of rays.
"""

# mypy: disable-error-code="no-untyped-def,valid-type,empty-body,untyped-decorator"
# mypy: disable-error-code="attr-defined,type-var,arg-type"
import warp as wp

from posegen_ray.subjects.vector_kernels import FOUR

wp.set_module_options({"enable_backward": False})

WIDTH = 32  # numbers of a row of `mix`


@wp.kernel
def signed_distance(
    mesh: wp.uint64,
    places: wp.array(dtype=wp.vec3),
    farthest: float,
    with_sign: int,  # 1: negative inside; three times the work
    distance: wp.array(dtype=float),  # `farthest` where nothing is nearer
):
    i = wp.tid()
    distance[i] = farthest
    if with_sign == 1:
        query = wp.mesh_query_point_sign_winding_number(mesh, places[i], farthest)
        if query.result:
            nearest = wp.mesh_eval_position(mesh, query.face, query.u, query.v)
            distance[i] = query.sign * wp.length(nearest - places[i])
    else:
        near = wp.mesh_query_point_no_sign(mesh, places[i], farthest)
        if near.result:
            nearest = wp.mesh_eval_position(mesh, near.face, near.u, near.v)
            distance[i] = wp.length(nearest - places[i])


@wp.func_native(
    FOUR
    + """
    const four* value = (const four*)values.data;
    four weight = *(const four*)&strength;
    auto add = [&](int to, four pull) {
#if defined(__CUDA_ARCH__)
        for (int c = 0; c < 4; ++c) atomicAdd((float*)(grad_values.data + to) + c, pull[c]);
#else
        *((four*)grad_values.data + to) += pull;
#endif
    };
    for (int axis = 0; axis < 3; ++axis) {
        int next = neighbours.data[3 * i + axis];
        if (next < 0) continue;
        four pull = value[i] - value[next];
        for (int c = 0; c < 4; ++c) pull[c] *= weight[c];
        add(i, pull);
        add(next, pull * -1.0f);
    }
    """
)
def smooth_four(
    neighbours: wp.array2d(dtype=wp.int32),
    values: wp.array(dtype=wp.vec4),
    strength: wp.vec4,
    grad_values: wp.array(dtype=wp.vec4),
    i: int,
):
    """Adds the gradient of strength / 2 * (difference to the next value along each axis)^2."""


@wp.kernel
def smooth(
    neighbours: wp.array2d(dtype=wp.int32),  # [M, 3] next row along x, y, z; < 0: none
    values: wp.array(dtype=wp.vec4),
    strength: wp.vec4,
    grad_values: wp.array(dtype=wp.vec4),  # added to
):
    smooth_four(neighbours, values, strength, grad_values, wp.tid())


@wp.func_native(
    FOUR
    + """
    four* grad = (four*)grad_values.data + i;
    four* value = (four*)values.data + i;
    four* m = (four*)mean.data + i;
    four* s = (four*)square.data + i;
    four g = *grad;
    four first = *m * 0.9f + g * 0.1f, second, moved;
    for (int c = 0; c < 4; ++c) {
        second[c] = 0.99f * (*s)[c] + 0.01f * g[c] * g[c];
        float step = rate[c] * first[c] * mean_unbias / (sqrtf(second[c] * square_unbias) + 1e-8f);
        float at = (*value)[c] - step;
        at = at > lowest[c] ? at : lowest[c];
        moved[c] = at < highest[c] ? at : highest[c];
    }
    *m = first;
    *s = second;
    *value = moved;
    for (int c = 0; c < 4; ++c) (*grad)[c] = 0.0f;
    """
)
def adam_four(
    values: wp.array(dtype=wp.vec4),
    grad_values: wp.array(dtype=wp.vec4),
    mean: wp.array(dtype=wp.vec4),
    square: wp.array(dtype=wp.vec4),
    rate: wp.vec4,
    mean_unbias: float,
    square_unbias: float,
    lowest: wp.vec4,
    highest: wp.vec4,
    i: int,
):
    """An Adam step of value i (betas 0.9 and 0.99), clamped to its range; then its gradient is
    zero."""


@wp.kernel
def adam(
    values: wp.array(dtype=wp.vec4),
    grad_values: wp.array(dtype=wp.vec4),  # set to zero
    mean: wp.array(dtype=wp.vec4),
    square: wp.array(dtype=wp.vec4),
    rate: wp.vec4,
    mean_unbias: float,
    square_unbias: float,
    lowest: wp.vec4,
    highest: wp.vec4,
):
    adam_four(
        values,
        grad_values,
        mean,
        square,
        rate,
        mean_unbias,
        square_unbias,
        lowest,
        highest,
        wp.tid(),
    )


@wp.func_native(
    FOUR
    + f"""
    constexpr int fours = {WIDTH // 4};
    four sum[fours];
    for (int k = 0; k < fours; ++k)
        for (int c = 0; c < 4; ++c) sum[k][c] = 0.0f;
    for (int e = first.data[i]; e < first.data[i + 1]; ++e) {{
        const four* row = (const four*)(rows.data) + fours * other.data[e];
        for (int k = 0; k < fours; ++k) sum[k] = sum[k] + row[k] * share.data[e];
    }}
    for (int k = 0; k < fours; ++k) ((four*)mixed.data)[fours * i + k] = sum[k];
    """
)
def mix_fours(
    first: wp.array(dtype=wp.int32),
    other: wp.array(dtype=wp.int32),
    share: wp.array(dtype=float),
    rows: wp.array2d(dtype=float),
    mixed: wp.array2d(dtype=float),
    i: int,
):
    """Sets row i to a mixture of others."""


@wp.kernel
def mix(
    first: wp.array(dtype=wp.int32),  # [V + 1] a sparse matrix by rows: where each begins,
    other: wp.array(dtype=wp.int32),  # [E] its columns
    share: wp.array(dtype=float),  # [E] and values
    rows: wp.array2d(dtype=float),  # [V, WIDTH]
    mixed: wp.array2d(dtype=float),  # [V, WIDTH] out: the product of the two
):
    mix_fours(first, other, share, rows, mixed, wp.tid())
