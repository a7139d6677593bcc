/* Decodes the part of a JPEG that a crop needs: entropy decoding stops below it, and only its own columns and rows
   are transformed. libjpeg-turbo offers this to C callers only, and no Python package on PyPI passes it on without
   a GPU library. Called by region.py through ctypes, which releases the GIL meanwhile. */

#define _GNU_SOURCE /* dl_iterate_phdr, memmem */
#include <link.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* Not every system installs jpegint.h; without it, or to compare (benchmarks/huffman.py), libjpeg decodes alone. */
#if __has_include(<jpegint.h>) && !defined(LIBJPEG_ALONE)
#define JPEG_INTERNALS
#endif
#include <jpeglib.h>

#include "huffman.h"

struct failure {
    struct jpeg_error_mgr manager;
    jmp_buf back;
    volatile int gave_up;
    char *message; /* JMSG_LENGTH_MAX bytes of the caller */
};

static void fail(j_common_ptr info) {
    struct failure *failure = (struct failure *)info->err;
    failure->manager.format_message(info, failure->message);
    longjmp(failure->back, 1);
}

static void give_up(j_decompress_ptr info) {
    struct failure *failure = (struct failure *)info->err;
    failure->gave_up = 1;
    longjmp(failure->back, 1);
}

/* A warning (level -1) means damaged data, which libjpeg would fill in with grey. */
static void fail_on_warning(j_common_ptr info, int level) {
    if (level < 0) fail(info);
}

enum outcome { BY_LIBJPEG, BY_OURS, FAILED, GAVE_UP };

/* As bit_decode_region, but ours gives up on unsound data. */
static enum outcome decode(int may_be_ours, const unsigned char *data, unsigned long num_bytes, int shrink, int left,
                           int top, int width, int height, unsigned char *out, long row_bytes, int *first_column,
                           char *message) {
    struct jpeg_decompress_struct info;
    struct failure failure;
    struct huffman huffman;
    failure.gave_up = 0;
    info.err = jpeg_std_error(&failure.manager);
    failure.manager.error_exit = fail;
    failure.manager.emit_message = fail_on_warning;
    failure.message = message;
    if (setjmp(failure.back)) {
        jpeg_destroy_decompress(&info);
        return failure.gave_up ? GAVE_UP : FAILED;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, num_bytes);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_EXT_RGBX;
    info.scale_num = 1;
    info.scale_denom = shrink;
    jpeg_start_decompress(&info);
    if (left < 0 || top < 0 || width < 1 || height < 1 || left + width > (int)info.output_width ||
        top + height > (int)info.output_height) {
        snprintf(message, JMSG_LENGTH_MAX, "the region is not inside the image");
        jpeg_destroy_decompress(&info);
        return FAILED;
    }
    int is_ours = may_be_ours && take_over(&info, &huffman, give_up);
    /* Colour is interpolated from its neighbours: one more unit on each side keeps the region's edges exact. */
#if JPEG_LIB_VERSION >= 70
    int unit = info.max_h_samp_factor * info.min_DCT_h_scaled_size;
#else
    int unit = info.max_h_samp_factor * info.min_DCT_scaled_size;
#endif
    int start = left > unit ? left - unit : 0;
    int stop = left + width + unit < (int)info.output_width ? left + width + unit : (int)info.output_width;
    JDIMENSION first = start, columns = stop - start;
    jpeg_crop_scanline(&info, &first, &columns);
    if (4 * (long)columns > row_bytes) {
        snprintf(message, JMSG_LENGTH_MAX, "units of %d columns are wider than those of JPEG", unit);
        jpeg_destroy_decompress(&info);
        return FAILED;
    }
    *first_column = (int)first;
    if (top > 0) jpeg_skip_scanlines(&info, top);
    while ((int)info.output_scanline < top + height) {
        JSAMPROW row = out + (size_t)(info.output_scanline - top) * row_bytes;
        jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_destroy_decompress(&info);
    return is_ours ? BY_OURS : BY_LIBJPEG;
}

/* Writes rows [top, top + height) of the image, shrunk 1/`shrink` (1, 2, 4 or 8), as RGBX into `out`.
   Columns: at least [left, left + width); starts at *first_column, which may lie left of `left`.
   `row_bytes` must hold 4 bytes for each of width + 2 * 16 * 8 columns. Our Huffman decoder reads what it can if it
   `may_be_ours`. Returns BY_LIBJPEG or BY_OURS, or FAILED with `message` filled. */
int bit_decode_region(int may_be_ours, const unsigned char *data, unsigned long num_bytes, int shrink, int left,
                      int top, int width, int height, unsigned char *out, long row_bytes, int *first_column,
                      char *message) {
    enum outcome outcome = GAVE_UP;
    for (; outcome == GAVE_UP; may_be_ours = 0)
        outcome = decode(may_be_ours, data, num_bytes, shrink, left, top, width, height, out, row_bytes, first_column,
                         message);
    return outcome;
}

struct version_search {
    const char *message; /* one of libjpeg's own, in the segment that is searched */
    const char *version;
};

static int find_version(struct dl_phdr_info *object, size_t size, void *data) {
    static const char BEFORE[] = "libjpeg-turbo version ";
    struct version_search *search = data;
    (void)size;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = object->dlpi_phdr + i;
        const char *start = (const char *)(object->dlpi_addr + segment->p_vaddr), *stop = start + segment->p_filesz;
        if (segment->p_type != PT_LOAD || search->message < start || search->message >= stop) continue;
        const char *found = memmem(start, stop - start, BEFORE, sizeof BEFORE - 1);
        if (found) search->version = found + sizeof BEFORE - 1;
        return 1;
    }
    return 0;
}

/* Returns the version of the libjpeg-turbo that this process has loaded, such as "2.1.5 (build 20230203)", or "" for
   any other libjpeg. No function returns it: the text stands among the constants of its compressor, so it is searched
   for in the segment of the library that holds its messages. README.md explains why this is sound. */
const char *bit_libjpeg_version(void) {
    struct jpeg_error_mgr manager;
    struct version_search search = {jpeg_std_error(&manager)->jpeg_message_table[0], ""};
    dl_iterate_phdr(find_version, &search);
    return search.version;
}

/* Sixteen bytes that hold four pixels of four bytes, as twelve bytes of RGB and four without meaning. */
typedef unsigned char pixels_4 __attribute__((vector_size(16)));
#ifdef __clang__
#define SHUFFLED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else /* which GCC has from 12 on only */
#define SHUFFLED(v, ...) __builtin_shuffle(v, (pixels_4){__VA_ARGS__})
#endif
#define IN_ORDER(v) SHUFFLED(v, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15)
#define MIRRORED(v) SHUFFLED(v, 12, 13, 14, 8, 9, 10, 4, 5, 6, 0, 1, 2, 3, 7, 11, 15)

/* Writes `height` rows of `width` pixels of four bytes as RGB, each row from right to left where `flip`.
   Four pixels at once, and the bytes without meaning are overwritten by the next four: a sixth of the time of single
   pixels. The x86-64 of 2003 has no such shuffle; the processor's own version is chosen when the library is loaded. */
#ifdef __x86_64__
__attribute__((target_clones("default", "ssse3")))
#endif
void bit_pack_rgb(const unsigned char *rgbx, long width, long height, int flip, unsigned char *out) {
    for (long row = 0; row < height; row++, rgbx += 4 * width) {
        long column = 0;
        for (; column + 5 < width; column += 4, out += 12) { /* two pixels must follow: they take the four bytes */
            pixels_4 four;
            memcpy(&four, rgbx + 4 * (flip ? width - 4 - column : column), 16);
            four = flip ? MIRRORED(four) : IN_ORDER(four);
            memcpy(out, &four, 16);
        }
        for (; column < width; column++, out += 3) memcpy(out, rgbx + 4 * (flip ? width - 1 - column : column), 3);
    }
}
