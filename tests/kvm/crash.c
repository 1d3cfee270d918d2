/* A kernel that does what a real one's init does, in few instructions: it says hello, runs a
 * program for a while, brings back what that printed and one output file, and waits for the end.
 * It stands on the hostile kernel's machine, and speaks by its vsock. */
#include "hostile_vsock.c"

/* What pyvmm looks for in a kernel (pyvmm/kernel/elf.py). */
__attribute__((used)) static const char posing_as[] =
	"Linux version 6.6.6-crash \0virtio-mmio\0virtio_blk\0vmw_vsock_virtio_transport\0EXT4-fs"
	"\0virtio_mmio.device";

enum { FILE_END = 8, END = 10 };
enum { BOOTING = 2500, RUNNING = 2500, COLLECTED = 8, PIECE = 1 << 16 };

static void work(uint32_t rounds)
{
	for (volatile uint32_t i = 0; i < rounds; i++)
		;
}

static void clear_payload(uint32_t length)
{
	uint32_t at = room() + HEADER + 8;

	for (uint32_t i = 0; i < length; i += 4)
		write32(at + i, 0);
}

int main(void)
{
	work(BOOTING);
	outb(PORT_MARK, 1);
	hello();
	frame(STARTED, 8);
	outb(PORT_MARK, 2);
	work(RUNNING);
	write32(room() + HEADER + 8, 0x0a6b6f); /* "ok\n" */
	frame(STDOUT, 3);
	outb(PORT_MARK, 3);
	clear_payload(104);
	frame(EXIT, 104);
	clear_payload(16);
	frame(FILE_BEGIN, 16);
	for (unsigned i = 0; i < COLLECTED; i++)
		frame(FILE_DATA, PIECE);
	clear_payload(4);
	frame(FILE_END, 4);
	frame(END, 0);
	for (;;)
		hear();
}
