/* Decodes the part of a JPEG that a crop needs: entropy decoding stops below it, and only its own columns and rows
   are transformed. libjpeg-turbo offers this to C callers only, and no Python package on PyPI passes it on without
   a GPU library. Called by region.py through ctypes, which gives the GIL back meanwhile. */

#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

struct failure {
    struct jpeg_error_mgr manager;
    jmp_buf back;
    char *message; /* JMSG_LENGTH_MAX bytes of the caller */
};

static void fail(j_common_ptr info) {
    struct failure *failure = (struct failure *)info->err;
    failure->manager.format_message(info, failure->message);
    longjmp(failure->back, 1);
}

/* A warning (level -1) tells of damaged data that libjpeg would fill in with grey. */
static void fail_on_warning(j_common_ptr info, int level) {
    if (level < 0) fail(info);
}

/* Writes rows [top, top + height) of the picture, shrunk 1/`shrink` (1, 2, 4 or 8), as RGBX into `out`.
   Columns: at least [left, left + width); starts at *first_column, which may lie left of `left`.
   `row_bytes` must hold 4 bytes for each of width + 2 * 16 * 8 columns. Returns 0, or 1 with `message` filled. */
int bit_decode_region(const unsigned char *data, unsigned long num_bytes, int shrink, int left, int top, int width,
                      int height, unsigned char *out, long row_bytes, int *first_column, char *message) {
    struct jpeg_decompress_struct info;
    struct failure failure;
    info.err = jpeg_std_error(&failure.manager);
    failure.manager.error_exit = fail;
    failure.manager.emit_message = fail_on_warning;
    failure.message = message;
    if (setjmp(failure.back)) {
        jpeg_destroy_decompress(&info);
        return 1;
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
        snprintf(message, JMSG_LENGTH_MAX, "the region is not inside the picture");
        jpeg_destroy_decompress(&info);
        return 1;
    }
    /* Colour is interpolated from its neighbours: one more unit on each side keeps the region's edges exact. */
    int unit = info.max_h_samp_factor * info.min_DCT_scaled_size;
    int start = left > unit ? left - unit : 0;
    int stop = left + width + unit < (int)info.output_width ? left + width + unit : (int)info.output_width;
    JDIMENSION first = start, columns = stop - start;
    jpeg_crop_scanline(&info, &first, &columns);
    *first_column = (int)first;
    if (top > 0) jpeg_skip_scanlines(&info, top);
    while ((int)info.output_scanline < top + height) {
        JSAMPROW row = out + (size_t)(info.output_scanline - top) * row_bytes;
        jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_destroy_decompress(&info);
    return 0;
}

/* Writes `height` rows of `width` pixels of four bytes as RGB, each row from right to left where `flip`.
   Four bytes are stored at once and the fourth is overwritten by the next pixel: half the time of three single ones. */
void bit_pack_rgb(const unsigned char *rgbx, long width, long height, int flip, unsigned char *out) {
    const long step = flip ? -4 : 4;
    for (long row = 0; row < height; row++) {
        const unsigned char *pixel = rgbx + 4 * (row * width + (flip ? width - 1 : 0));
        for (long column = 1; column < width; column++, pixel += step, out += 3) memcpy(out, pixel, 4);
        memcpy(out, pixel, 3);
        out += 3;
    }
}
