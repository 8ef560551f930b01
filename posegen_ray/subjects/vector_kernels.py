"""The renderer's arithmetic on four numbers at once: barycentric coordinates, colours and density.

In C++, because Warp takes its vectors apart into single numbers, and the CPU's compiler does not
put them together again; that took twice as long. On a GPU the same expressions work number by
number.
Warp arrays are taken as contiguous. `march_kernels` says what it is all for.
"""

# mypy: disable-error-code="no-untyped-def,valid-type,empty-body,untyped-decorator"
import warp as wp

Crossing = wp.types.vector(length=7, dtype=wp.float32)
ShadePull = wp.types.vector(length=10, dtype=wp.float32)

FOUR = """
#if defined(__CUDA_ARCH__)
    struct four {
        float c[4];
        __device__ float& operator[](int i) { return c[i]; }
        __device__ float operator[](int i) const { return c[i]; }
        __device__ four operator+(four o) const {
            return {c[0] + o.c[0], c[1] + o.c[1], c[2] + o.c[2], c[3] + o.c[3]};
        }
        __device__ four operator-(four o) const {
            return {c[0] - o.c[0], c[1] - o.c[1], c[2] - o.c[2], c[3] - o.c[3]};
        }
        __device__ four operator/(four o) const {
            return {c[0] / o.c[0], c[1] / o.c[1], c[2] / o.c[2], c[3] / o.c[3]};
        }
        __device__ four operator*(float s) const {
            return {c[0] * s, c[1] * s, c[2] * s, c[3] * s};
        }
    };
#else
    typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
#endif
"""

_EXP = """
    // exp(x) for -87 < x < 87 to 2e-7 of it: the Taylor series of 2^f, |f| <= 1/2
    auto quick_exp = [](float x) {
        float y = x * 1.44269504f;
        float shifted = y + 12582912.0f;  // the nearest whole number is in its last bits
        float f = y - (shifted - 12582912.0f);
        float ff = f * f;
        float low = (1.0f + f * 0.693147181f) + ff * (0.240226507f + f * 0.0555041087f);
        float high = (0.00961812911f + f * 0.00133335581f) + ff * 0.000154035304f;
        float power = low + (ff * ff) * high;
        unsigned bits, exponent;
        memcpy(&exponent, &shifted, 4);
        memcpy(&bits, &power, 4);
        bits += exponent << 23;
        memcpy(&power, &bits, 4);
        return power;
    };
"""

_CELL = """
    auto within = [](float place) {
        int cell = (int)place;
        return cell < 0 ? 0 : (cell > 2 ? 2 : cell);
    };
    int i = within(place[0]), j = within(place[1]), k = within(place[2]);
    const four* v = (const four*)values.data + 64 * block + 16 * i + 4 * j + k;
"""

_LOOK_UP = """
    float x = place[0] - (float)i, y = place[1] - (float)j, z = place[2] - (float)k;
    four d00 = v[1] - v[0], d01 = v[5] - v[4], d10 = v[17] - v[16], d11 = v[21] - v[20];
    four v00 = v[0] + d00 * z, v01 = v[4] + d01 * z, v10 = v[16] + d10 * z, v11 = v[20] + d11 * z;
    four e0 = v01 - v00, e1 = v11 - v10;
    four v0 = v00 + e0 * y, v1 = v10 + e1 * y;
    four value = v0 + (v1 - v0) * x;
"""

_DENSITY = """
    float sigmoid = 1.0f / (1.0f + quick_exp(-value[3]));
    float density = scale * (sigmoid - 1.0f / (1.0f + quick_exp(-empty)));
    float depth = density * length;
    float passed = quick_exp(depth < 80.0f ? -depth : -80.0f);
"""

_INSIDE = """
    const four* map = (const four*)maps.data + row;
    four rate = map[0] * slope[0] + map[1] * slope[1] + map[2];
    four inside = map[3] + rate * depth;
"""


@wp.func_native(
    FOUR
    + _INSIDE
    + """
    const int* beyond = neighbours.data + 4 * tet;
#if !defined(__CUDA_ARCH__)
    for (int i = 0; i < 4; ++i) __builtin_prefetch(map + 4 * (beyond[i] / 4 - tet));
#endif
    four ahead = inside;
    for (int i = 0; i < 4; ++i) ahead[i] = ahead[i] > at_face ? ahead[i] : at_face;
    four speed = rate / ahead;
    float s0 = speed[0], s1 = speed[1], s2 = speed[2], s3 = speed[3];
    float first = s0 < s1 ? s0 : s1;
    float second = s2 < s3 ? s2 : s3;
    int leave = first < second ? (s1 <= s0 ? 1 : 0) : (s3 <= s2 ? 3 : 2);
    int onward = beyond[leave];
    float way = -1.0f / (first < second ? first : second);
    four middle = inside + rate * (0.5f * way);
    const four* corner = (const four*)corners.data + kind;
    four place = corner[0] * middle[0] + corner[1] * middle[1] + corner[2] * middle[2]
        + corner[3] * middle[3];
    const int* vertex = (const int*)(tets.data + tet);
    const float* bright = brightness.data + first_vertex;
    float lit = bright[vertex[0]] * middle[0] + bright[vertex[1]] * middle[1]
        + bright[vertex[2]] * middle[2] + bright[vertex[3]] * middle[3];
    wp::vec_t<7, float> out;
    out[0] = place[0];
    out[1] = place[1];
    out[2] = place[2];
    out[3] = way;
    out[4] = lit;
    memcpy(&out[5], &leave, 4);
    memcpy(&out[6], &onward, 4);
    return out;
    """
)
def cross_four(
    maps: wp.array(dtype=wp.vec4),
    row: int,
    neighbours: wp.array(dtype=wp.int32),
    corners: wp.array(dtype=wp.vec4),
    kind: int,
    tets: wp.array(dtype=wp.vec4i),
    tet: int,
    brightness: wp.array(dtype=float),
    first_vertex: int,
    slope: wp.vec2,
    depth: float,
    at_face: float,
) -> Crossing:
    """Place half-way (3), way, brightness there; as bits of integers: the corner opposite the face
    that the ray leaves by, and what that face is called on its other side."""


@wp.func_native(
    FOUR
    + _CELL
    + """
#if !defined(__CUDA_ARCH__)
    __builtin_prefetch(v);
    __builtin_prefetch(v + 4);
    __builtin_prefetch(v + 16);
    __builtin_prefetch(v + 20);
#endif
    """
)
def fetch_four(values: wp.array(dtype=wp.vec4), block: int, place: wp.vec3):
    """Asks the memory for the values around a place, to be used a little later."""


@wp.func_native(
    FOUR
    + """
#if !defined(__CUDA_ARCH__)
    __builtin_prefetch(maps.data + row);
    if (to_maps) __builtin_prefetch(grad_maps.data + row);
#endif
    """
)
def fetch_map(
    maps: wp.array(dtype=wp.vec4), row: int, to_maps: int, grad_maps: wp.array(dtype=wp.vec4)
):
    """The same for a tetrahedron's map and, where `to_maps` says so, its gradient."""


@wp.func_native(
    FOUR
    + _CELL
    + """
#if !defined(__CUDA_ARCH__)
    const int* row = rows.data + (v - (const four*)values.data);
    // of two neighbours along z, the second one's row is the next
    __builtin_prefetch(grad_values.data + row[0]);
    __builtin_prefetch(grad_values.data + row[4]);
    __builtin_prefetch(grad_values.data + row[16]);
    __builtin_prefetch(grad_values.data + row[20]);
#endif
    """
)
def fetch_gradient(
    values: wp.array(dtype=wp.vec4),
    rows: wp.array(dtype=wp.int32),
    grad_values: wp.array(dtype=wp.vec4),
    block: int,
    place: wp.vec3,
):
    """The same for what `pull_back_values_four` will add to."""


@wp.func_native(
    FOUR
    + _EXP
    + _CELL
    + _LOOK_UP
    + "if (value[3] <= empty) return wp::vec_t<4, float>(0.0f, 0.0f, 0.0f, 1.0f);"
    + _DENSITY
    + "return wp::vec_t<4, float>(value[0], value[1], value[2], passed);"
)
def shade_four(
    values: wp.array(dtype=wp.vec4),
    block: int,
    place: wp.vec3,
    scale: float,
    empty: float,
    length: float,
) -> wp.vec4:
    """Colour (3) at a place in a block of 4 x 4 x 4 values, and the share of light that passes."""


@wp.func_native(
    FOUR
    + _EXP
    + _CELL
    + _LOOK_UP
    + _DENSITY
    + """
    wp::vec_t<10, float> out;
    float weight = light * (1.0f - passed);
    float worth = grad[0] * value[0] + grad[1] * value[1] + grad[2] * value[2];
    float lit = brightness * worth;
    float by_depth = light * passed * lit - behind;  // d(loss) / d(depth)
    float colour = weight * brightness;
    float g[4] = {colour * grad[0], colour * grad[1], colour * grad[2],
                  by_depth * length * scale * sigmoid * (1.0f - sigmoid)};
    four d0 = d00 + (d01 - d00) * y, d1 = d10 + (d11 - d10) * y;
    four by_x = v1 - v0, by_y = e0 + (e1 - e0) * x, by_z = d0 + (d1 - d0) * x;
    float gx = 0.0f, gy = 0.0f, gz = 0.0f;
    for (int i = 0; i < 4; ++i) {
        gx += g[i] * by_x[i];
        gy += g[i] * by_y[i];
        gz += g[i] * by_z[i];
    }
    out[0] = gx;
    out[1] = gy;
    out[2] = gz;
    out[3] = by_depth * density;
    out[4] = weight * worth;
    for (int i = 0; i < 4; ++i) out[5 + i] = g[i];
    out[9] = behind + weight * lit;
    return out;
    """
)
def pull_back_shade_four(
    values: wp.array(dtype=wp.vec4),
    block: int,
    place: wp.vec3,
    scale: float,
    empty: float,
    length: float,
    brightness: float,
    light: float,
    behind: float,
    grad: wp.vec4,
) -> ShadePull:
    """Gradients to place (3), length, brightness and the interpolated value (4); then what the
    light that comes to the sample is worth."""


@wp.func_native(
    FOUR
    + _INSIDE
    + """
    four middle = inside + rate * (0.5f * way);
    const four* corner = (const four*)corners.data + kind;
    const int* vertex = (const int*)(tets.data + tet);
    const float* bright = brightness.data + first_vertex;
    float* grad_bright = grad_brightness.data + first_vertex;
    float to_brightness = pull[4];
    four to_offset;
    for (int i = 0; i < 4; ++i) {
        to_offset[i] = corner[i][0] * pull[0] + corner[i][1] * pull[1] + corner[i][2] * pull[2]
            + bright[vertex[i]] * to_brightness;
#if defined(__CUDA_ARCH__)
        atomicAdd(grad_bright + vertex[i], to_brightness * middle[i]);
#else
        grad_bright[vertex[i]] += to_brightness * middle[i];
#endif
    }
    if (!to_maps) return wp::vec_t<2, float>(0.0f, 0.0f);
    four to_rate = to_offset * (depth + 0.5f * way);
    // the ends obey coordinate(end) = 0 for the corner opposite their face; the sample moves along
    float half = 0.0f;
    for (int i = 0; i < 4; ++i) half += 0.5f * to_offset[i] * rate[i];
    float at_enter = (half - pull[3] * norm) / rate[enter];
    float at_leave = (half + pull[3] * norm) / rate[leave];
    for (int i = 0; i < 4; ++i) {
        float e = i == enter ? at_enter : 0.0f;
        float l = i == leave ? at_leave : 0.0f;
        to_offset[i] -= e + l;
        to_rate[i] -= depth * e + (depth + way) * l;
    }
    four along_x = to_rate * slope[0];
    four along_y = to_rate * slope[1];
    float gx = 0.0f, gy = 0.0f;
    for (int i = 0; i < 4; ++i) {
        gx += to_rate[i] * map[0][i];
        gy += to_rate[i] * map[1][i];
    }
#if defined(__CUDA_ARCH__)
    for (int i = 0; i < 4; ++i) {
        float* g = (float*)(grad_maps.data + row) + i;
        atomicAdd(g, along_x[i]);
        atomicAdd(g + 4, along_y[i]);
        atomicAdd(g + 8, to_rate[i]);
        atomicAdd(g + 12, to_offset[i]);
    }
#else
    four* g = (four*)grad_maps.data + row;
    g[0] += along_x;
    g[1] += along_y;
    g[2] += to_rate;
    g[3] += to_offset;
#endif
    return wp::vec_t<2, float>(gx, gy);
    """
)
def pull_back_cross_four(
    maps: wp.array(dtype=wp.vec4),
    row: int,
    corners: wp.array(dtype=wp.vec4),
    kind: int,
    tets: wp.array(dtype=wp.vec4i),
    tet: int,
    brightness: wp.array(dtype=float),
    first_vertex: int,
    slope: wp.vec2,
    norm: float,
    depth: float,
    way: float,
    enter: int,
    leave: int,
    pull: ShadePull,
    to_maps: int,
    grad_maps: wp.array(dtype=wp.vec4),
    grad_brightness: wp.array(dtype=float),
) -> wp.vec2:
    """Adds the gradient of a crossing to its tetrahedron's map and corners' brightness; returns the
    slope's."""


@wp.func_native(
    FOUR
    + _CELL
    + """
    const int* row = rows.data + (v - (const four*)values.data);
    float x = place[0] - (float)i, y = place[1] - (float)j, z = place[2] - (float)k;
    four g = *(const four*)&grad;
    four high = g * z, low = g - high;
    auto add = [&](int at, four pull) {
        int to = row[at];
        if (to < 0) return;
#if defined(__CUDA_ARCH__)
        for (int c = 0; c < 4; ++c) atomicAdd((float*)(grad_values.data + to) + c, pull[c]);
#else
        *((four*)grad_values.data + to) += pull;
#endif
    };
    float x1 = x, x0 = 1.0f - x, y1 = y, y0 = 1.0f - y;
    add(0, low * (x0 * y0));
    add(1, high * (x0 * y0));
    add(4, low * (x0 * y1));
    add(5, high * (x0 * y1));
    add(16, low * (x1 * y0));
    add(17, high * (x1 * y0));
    add(20, low * (x1 * y1));
    add(21, high * (x1 * y1));
    """
)
def pull_back_values_four(
    values: wp.array(dtype=wp.vec4),
    rows: wp.array(dtype=wp.int32),
    grad_values: wp.array(dtype=wp.vec4),
    block: int,
    place: wp.vec3,
    grad: wp.vec4,
):
    """Adds the gradient of an interpolated value to the field's rows."""


@wp.func_native(
    FOUR
    + """
    int row = rows.data[i];
    ((four*)values.data)[i] = ((const four*)stored.data)[row < 0 ? absent : row];
    """
)
def copy_four(
    stored: wp.array(dtype=wp.vec4),
    rows: wp.array(dtype=wp.int32),
    absent: int,
    values: wp.array(dtype=wp.vec4),
    i: int,
):
    """Sets value i to the row that it is a copy of, or to row `absent`."""
