/* SPDX-License-Identifier: Apache-2.0 */
/* virtio-rng: how much comes, and that nothing else changes. */
#include "harness.h"
#include "machine.h"

#define AT_ONCE 256u /* bytes that the device gives at most */

const char *const goal = "that get bytes";

static bool may_be_hostile;

void target_begin(void)
{
	may_be_hostile = in8() & 1;
	wire(vm_add_rng(vm));
	start_any(0);
}

static void took(unsigned q, struct given *g, uint32_t len)
{
	(void)q;
	goal_met |= len > 0;
	if (hostile)
		return;
	check(len == MIN(g->in_len, AT_ONCE), "another length");
	for (uint32_t i = len; i < g->in_len; i++)
		check(g->in[i] == 0xee, "a byte beyond the length");
}

void target_op(uint8_t op)
{
	static const uint8_t out[256];
	uint32_t len, out_len;

	switch (op % 8) {
	case 0:
		settle();
		break;
	case 1:
		collect(0, took);
		break;
	case 2:
		devices[0].queue[0].wants_interrupts = in8() & 1;
		break;
	case 3:
		if (in8() % 8)
			break;
		collect(0, took);
		start_any(0);
		break;
	case 4:
		if (may_be_hostile)
			hostile_op();
		break;
	case 5:
		kick(0, 0);
		break;
	default:
		len = below(4) ? in8() : in16();
		out_len = below(4) ? 0 : in8();
		give(0, 0, out, out_len, len, in8());
	}
}

void target_end(void)
{
	kick(0, 0);
	settle();
	collect(0, took);
	for (unsigned i = 0; i < devices[0].queue[0].num; i++)
		check(hostile || !devices[0].queue[0].given[i].busy, "a chain is left");
}
