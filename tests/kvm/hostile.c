/*
 * A kernel that attacks the machine it runs on: ring 0, no rules. The command line says with what
 * (`hostile=NAME`), by which random sequence (`seed=N`) and how often (`count=N`); see
 * test_hostile_kernel.py. What a program does not break on purpose it keeps whole, so that each has
 * one way to end.
 */
#include "hostile.h"

/* What pyvmm looks for in a kernel (pyvmm/kernel/elf.py). */
__attribute__((used)) static const char posing_as[] =
	"Linux version 6.6.6-hostile \0virtio-mmio\0virtio_blk\0vmw_vsock_virtio_transport\0EXT4-fs"
	"\0virtio_mmio.device";

static uint32_t count;
static volatile bool over;

/* ---- the processor and its ports ---- */

static void program_fine(void)
{
	end("fine");
}

/* What ends the machine is left for the end. */
static bool ends(uint32_t port, uint32_t size, uint32_t value)
{
	for (uint32_t i = 0; i < size; i++)
		if (port + i == PORT_RESET || (port + i == 0x64 && (value >> 8 * i & 0xff) == 0xfe))
			return true;
	return false;
}

static void program_ports(void)
{
	static uint8_t buffer[4096];

	for (uint32_t i = 0; i < count; i++) {
		uint16_t port = one_in(4) ? PORT_SERIAL + below(8) : (uint16_t)any();
		uint32_t size = 1u << below(3), value = (uint32_t)any();
		uint64_t n = one_in(64) ? below(1024) : 1, n_in = n;
		void *to = buffer, *from = buffer;

		if (ends(port, size, value))
			continue;
		switch (below(n > 1 ? 4 : 2)) {
		case 0:
			in(port, size);
			break;
		case 1:
			if (size == 1)
				outb(port, (uint8_t)value);
			else if (size == 2)
				outw(port, (uint16_t)value);
			else
				outl(port, value);
			break;
		case 2:
			if (size == 1)
				__asm__ volatile("rep insb"
						 : "+D"(to), "+c"(n_in)
						 : "d"(port)
						 : "memory");
			else
				__asm__ volatile("rep insl"
						 : "+D"(to), "+c"(n_in)
						 : "d"(port)
						 : "memory");
			break;
		default:
			if (port <= 0x64 && port + size > 0x64)
				break;
			if (size == 1)
				__asm__ volatile("rep outsb" : "+S"(from), "+c"(n) : "d"(port));
			else if (size == 2)
				__asm__ volatile("rep outsw" : "+S"(from), "+c"(n) : "d"(port));
			else
				__asm__ volatile("rep outsl" : "+S"(from), "+c"(n) : "d"(port));
		}
	}
	end("ports done");
}

static void program_console(void)
{
	static uint8_t line[1024];

	for (unsigned i = 0; i < sizeof(line); i++)
		line[i] = i % 64 ? 'x' : '\n';
	while (count--) {
		const void *from = line;
		uint64_t n = sizeof(line);

		__asm__ volatile("rep outsb" : "+S"(from), "+c"(n) : "d"((uint16_t)PORT_SERIAL));
	}
	end("console done");
}

static void program_triple(void)
{
	const struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) none = {0};

	__asm__ volatile("lidt %0; ud2" : : "m"(none));
}

static void program_nowhere(void)
{
	((void (*)(void))(uintptr_t)0xd0000000)();
}

static void program_halt(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

static void program_spin(void)
{
	for (;;)
		;
}

static void reset_for_ever(void)
{
	for (;;)
		outb(PORT_RESET, 1);
}

static void program_reset(void)
{
	static const uint8_t ones[64] = {1};
	const void *from = ones;
	uint64_t n = sizeof(ones);

	say("reset\n");
	start_second(reset_for_ever);
	__asm__ volatile("rep outsb" : "+S"(from), "+c"(n) : "d"((uint16_t)PORT_RESET));
	reset_for_ever();
}

/* Not EFER, which is our own floor; not the local APIC's mode, base and command. Of KVM's own those
 * that Linux documents: one beyond them stops the processor where KVM is KVM-PVM. */
static uint32_t any_msr(void)
{
	static const uint32_t from[] = {0, 0x1000, 0x40000000, 0xc0000081, 0xc0010000};
	uint32_t msr;

	do {
		msr = one_in(8) ? (uint32_t)any() : from[below(5)] + below(0x300);
		if (one_in(8))
			msr = 0x4b564d00 + below(9);
	} while (msr == 0xc0000080 || msr == 0x1b || (msr >= 0x800 && msr < 0x900));
	return msr;
}

static void program_msrs(void)
{
	for (uint32_t i = 0; i < count; i++) {
		/* Some hold an address that KVM then writes to, and bit 0 says that it is meant. */
		uint64_t value = one_in(2) ? any_address() | 1 : any() >> below(64);
		uint32_t low = (uint32_t)value, high = (uint32_t)(value >> 32), msr = any_msr();

		if (one_in(2))
			__asm__ volatile("movq $1f, %2; rdmsr; 1:"
					 : "+a"(low), "+d"(high), "=m"(resume_at)
					 : "c"(msr));
		else
			__asm__ volatile("movq $1f, %0; wrmsr; 1:"
					 : "=m"(resume_at)
					 : "a"(low), "d"(high), "c"(msr));
	}
	end(faults ? "msrs done" : "no fault");
}

static void interrupt_each_other(void)
{
	while (!over)
		ipi((one_in(2) ? 0x400 : 0) | (0x30 + below(0xc0)) |
		    (one_in(2) ? 0x80000 : 0xc0000));
}

/* NMIs and interrupts from both processors to both, and the random rest of the local APIC. A vector
 * below 32 is a fault's, to us, and some of those have more on the stack. */
static void program_interrupts(void)
{
	start_second(interrupt_each_other);
	__asm__ volatile("sti");
	for (uint32_t i = 0; i < count; i++) {
		uint32_t reg = below(0x40) << 4;

		write32(LAPIC + 0x310, one_in(2) ? 0 : (uint32_t)any());
		/* The command's low half: never INIT, start-up or SMI. */
		write32(LAPIC + 0x300,
			((uint32_t)any() & 0xcf8ff) | 0x20 | (one_in(4) ? 0x400 : 0));
		if (reg != 0x300 && reg != 0x310 && reg != 0xd0 && reg != 0xe0 && reg != 0x20)
			write32(LAPIC + reg,
				((uint32_t)any() & (one_in(2) ? 0x500ff : -1u)) | 0x20);
		(void)read32(LAPIC + (below(0x40) << 4));
		write32(0xfec00000, below(0x40));
		write32(0xfec00010, ((uint32_t)any() & ~0x700u) | 0x20);
	}
	over = true;
	__asm__ volatile("cli");
	end(interrupts ? "interrupts done" : "no interrupt");
}

/* ---- memory-mapped registers ---- */

static void access(uint64_t at, uint32_t value)
{
	static uint8_t buffer[64];
	void *there = (void *)at, *here = buffer;
	uint64_t n = 1 + below(sizeof(buffer) - 1);

	switch (below(12)) {
	case 0:
		*(volatile uint8_t *)at = (uint8_t)value;
		break;
	case 1:
		*(volatile uint16_t *)at = (uint16_t)value;
		break;
	case 2:
		*(volatile uint64_t *)at = value;
		break;
	case 3:
		(void)*(volatile uint8_t *)at;
		break;
	case 4:
		(void)*(volatile uint16_t *)at;
		break;
	case 5:
		(void)*(volatile uint64_t *)at;
		break;
	case 6:
		__asm__ volatile("rep movsb" : "+D"(here), "+S"(there), "+c"(n) : : "memory");
		break;
	case 7:
		__asm__ volatile("rep movsb" : "+D"(there), "+S"(here), "+c"(n) : : "memory");
		break;
	case 8:
		__asm__ volatile("addl %1, %0" : "+m"(*(uint32_t *)at) : "r"(value));
		break;
	case 9:
		__asm__ volatile("xchgl %1, %0" : "+m"(*(uint32_t *)at), "+r"(value));
		break;
	case 10:
		(void)read32(at);
		break;
	default:
		write32(at, value);
	}
}

/* Mostly a device's page, also unaligned, over its end, and slots that nobody has. */
static uint64_t any_register(void)
{
	uint64_t page = MMIO_BASE + below(8) * MMIO_STRIDE;

	switch (below(16)) {
	case 0:
		return page - below(8);
	case 1:
		return 0xc0000000 + below(0x1000);
	case 2:
		return 0xc0009000 + below(0x3e000000);
	case 3:
		return RAM_END - below(8);
	case 4:
		return RAM_END + below(0xc0000000 - RAM_END);
	case 5:
	case 6:
		return page + below(0x1000);
	default:
		return page + (below(0x100) & ~3u);
	}
}

/* What a ring's address may be: the devices must not be led to our own code. */
static uint32_t any_value(void)
{
	switch (below(4)) {
	case 0:
		return below(256);
	case 1:
		return any_address();
	case 2:
		return 0;
	default:
		return (uint32_t)any() | 0x80000000;
	}
}

static void program_mmio(void)
{
	for (uint32_t i = 0; i < count; i++) {
		uint64_t at = any_register();
		uint32_t value = any_value();

		if ((at & 0xff) >= 0x80 && (at & 0xff) < 0xa8)
			value |= ARENA;
		access(at, value);
	}
	end("mmio done");
}

/* ---- queues ---- */

static uint32_t any_length(void)
{
	switch (below(6)) {
	case 0:
		return (uint32_t)any();
	case 1:
		return 0;
	case 2:
		return below(64) << 9;
	case 3:
		return 16;
	default:
		return below(0x2000);
	}
}

static void any_desc(volatile struct desc *d)
{
	d->addr = one_in(16) ? any() | 1ull << 63 : any_address();
	d->len = any_length();
	d->flags = one_in(8) ? (uint16_t)any() : below(4);
	d->next = one_in(8) ? (uint16_t)any() : below(RING_SIZE);
}

/* A table in a descriptor, with tables in it, or itself. */
static void indirect(volatile struct desc *d)
{
	volatile struct desc *table = (void *)(uintptr_t)(ARENA + 0x10000 + (below(64) << 8));
	uint32_t n = one_in(8) ? below(300) : 1 + below(8);

	for (uint32_t i = 0; i < n && i < 16; i++) {
		any_desc(&table[i]);
		table[i].next = i + 1;
		if (one_in(16)) {
			table[i].flags |= INDIRECT;
			table[i].addr = (uintptr_t)table;
		}
	}
	d->addr = (uintptr_t)table;
	d->len = n * 16 + (one_in(16) ? below(16) : 0);
	d->flags = INDIRECT | (one_in(16) ? NEXT : 0);
}

/* A request that is right but for its numbers. */
static void disk_request(volatile struct desc *d)
{
	static const uint32_t types[] = {0, 1, 4, 8, 11, 13, 2, 0xffffffff};
	uint32_t header = ARENA + 0x20000 + (below(64) << 6);
	uint32_t type = types[below(8)];
	uint64_t sector = below(1 << 21);

	if (one_in(2)) /* around the disk's end, or where a byte's number overflows */
		sector = one_in(2) ? (1 << 15) - below(16) : any() >> below(16);
	write32(header, type);
	*(volatile uint64_t *)(uintptr_t)(header + 8) = sector;
	d[0] = (struct desc){header, 16, NEXT, 1};
	d[1] = (struct desc){any_address(), any_length(), NEXT | (one_in(2) ? WRITE : 0), 2};
	d[2] = (struct desc){header + 32, 1, WRITE, 0};
	if (type >= 11) {
		write32(header + 48, below(1 << 16));
		write32(header + 52, 0);
		write32(header + 56, one_in(4) ? (uint32_t)any() : below(1 << 12));
		write32(header + 60, one_in(4) ? (uint32_t)any() : 0);
		d[1] = (struct desc){header + 48, 16, NEXT, 2};
	}
}

static void abuse(unsigned device, unsigned queue)
{
	struct ring *r = &rings[device][queue];

	if (device == BLK && one_in(2)) {
		disk_request(r->desc);
		ring_add(r, 0);
	} else {
		for (unsigned n = 1 + below(4); n--;)
			any_desc(&r->desc[below(RING_SIZE)]);
		if (one_in(4))
			indirect(&r->desc[below(RING_SIZE)]);
		for (unsigned n = below(4); n--;)
			ring_add(r, one_in(32) ? (uint16_t)any() : below(RING_SIZE));
	}
	if (one_in(64))
		r->avail[1] = r->idx = (uint16_t)any();
	r->avail[0] = below(2);
	r->avail[2 + RING_SIZE] = (uint16_t)any();
	kick(device, one_in(16) ? below(8) : queue);
}

static void program_queues(void)
{
	for (uint32_t i = 0; i < count; i++) {
		unsigned device = below(DEVICES), queue = below(queues_of[device]);

		if ((read32(device_at(device) + 0x70) & 0x4f) != 15)
			device_start(device, one_in(2) ? 3ull << 28 : any() & 0x30006264);
		abuse(device, queue);
	}
	end("queues done");
}

static void change_queues(void)
{
	while (!over) {
		unsigned device = below(DEVICES);
		uint64_t at = device_at(device);

		switch (below(8)) {
		case 0:
			write32(at + 0x70, below(4) ? below(128) : 0);
			break;
		case 1:
			device_start(device, any());
			break;
		case 2:
			write32(at + 0x20, (uint32_t)any());
			break;
		default:
			write32(at + 0x30, below(4));
			write32(at + 0x44, below(2));
			write32(at + 0x38, one_in(4) ? (uint32_t)any() : 1u << below(9));
			write32(at + 0x80, any_address());
			write32(at + 0x90, any_address());
			write32(at + 0xa0, any_address());
			write32(at + 0x44, 1);
		}
		kick(device, below(4));
	}
}

/* The same while another processor changes them: addresses, sizes, ready, features, reset. */
static void program_races(void)
{
	start_second(change_queues);
	for (uint32_t i = 0; i < count; i++) {
		unsigned device = below(DEVICES), queue = below(queues_of[device]);

		if (!rings[device][queue].desc || one_in(64))
			device_start(device, 3ull << 28);
		abuse(device, queue);
	}
	over = true;
	end("races done");
}

/* The longest requests that there can be, as many as a ring holds, again and again. */
static void program_greed(void)
{
	struct ring *r = &rings[BLK][0];
	volatile struct desc *table = (void *)(uintptr_t)(ARENA + 0x10000);

	device_start(BLK, 1ull << 28);
	write32(ARENA, 0);
	table[0] = (struct desc){ARENA + 0x20000, 16, NEXT, 1};
	for (unsigned i = 1; i < 259; i++)
		table[i] =
			(struct desc){ARENA + 0x30000, count << 9, NEXT | WRITE, (uint16_t)(i + 1)};
	table[259] = (struct desc){ARENA + 0x20040, 1, WRITE, 0};
	for (uint16_t i = 0; i < RING_SIZE; i++)
		r->desc[i] = (struct desc){(uintptr_t)table, 260 * 16, INDIRECT, 0};
	for (uint16_t i = 0;; i++) {
		ring_add(r, i % RING_SIZE);
		while ((uint16_t)(r->idx - r->used[1]) == RING_SIZE)
			__asm__ volatile("pause");
		kick(BLK, 0);
	}
}

/* ---- which ---- */

static const struct {
	const char *name;
	void (*does)(void);
} programs[] = {
	{"fine", program_fine},	      {"ports", program_ports},
	{"console", program_console}, {"triple", program_triple},
	{"nowhere", program_nowhere}, {"halt", program_halt},
	{"spin", program_spin},	      {"reset", program_reset},
	{"msrs", program_msrs},	      {"interrupts", program_interrupts},
	{"mmio", program_mmio},	      {"queues", program_queues},
	{"races", program_races},     {"greed", program_greed},
};

static const struct {
	const char *name;
	void (*does)(uint32_t count);
} talkers[] = {
	{"requests", program_requests}, {"unplug", program_unplug}, {"liar", program_liar},
	{"babble", program_babble},	{"stdout", program_stdout}, {"file", program_file},
	{"drip", program_drip},
};

static bool is(const char *word, const char *name)
{
	while (*name && *word == *name) {
		word++;
		name++;
	}
	return !*name && (!*word || *word == ' ');
}

/* What follows `name` on the command line; "" if it is not there. */
static const char *option(const char *line, const char *name)
{
	for (; *line; line++) {
		const char *at = line, *n = name;

		while (*n && *at == *n) {
			at++;
			n++;
		}
		if (!*n)
			return at;
	}
	return line;
}

static uint32_t number(const char *digits)
{
	uint32_t n = 0;

	while (*digits >= '0' && *digits <= '9')
		n = n * 10 + (uint32_t)(*digits++ - '0');
	return n;
}

void main(const uint8_t *zero_page)
{
	const char *line = (const char *)(uintptr_t)*(const uint32_t *)(zero_page + 0x228);
	const char *name = option(line, "hostile=");

	seed(number(option(line, "seed=")));
	count = number(option(line, "count="));
	set_traps();
	for (unsigned i = 0; i < sizeof(programs) / sizeof(programs[0]); i++)
		if (is(name, programs[i].name))
			programs[i].does();
	for (unsigned i = 0; i < sizeof(talkers) / sizeof(talkers[0]); i++)
		if (is(name, talkers[i].name))
			talkers[i].does(count);
	end("no such program");
}
