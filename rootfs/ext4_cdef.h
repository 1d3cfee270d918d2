enum ext4_status {
	EXT4_OK,
	EXT4_IMAGE, /* the image is damaged or holds what ext4 cannot */
	EXT4_SPACE, /* the disk is too small: see ext4_needed */
	EXT4_HOST   /* the host failed: I/O, memory */
};

/*
 * The file at path must exist, be empty of data and have its final size. An image may have so many
 * names, and paths of so many bytes, up to what ext4 and Linux have. NULL: out of memory.
 */
struct ext4_writer *ext4_create(const char *path, uint64_t size, uint32_t names_max,
				uint32_t path_max);
int ext4_status(const struct ext4_writer *writer);
/* Merges one layer, an uncompressed tar stream read from the descriptor to its end. */
int ext4_layer(struct ext4_writer *writer, int fd);
/* Writes what is still in memory and closes the filesystem. */
int ext4_finish(struct ext4_writer *writer);
const char *ext4_error(const struct ext4_writer *writer);
/* After EXT4_SPACE: a size in bytes that would do. */
uint64_t ext4_needed(const struct ext4_writer *writer);
void ext4_free(struct ext4_writer *writer);
