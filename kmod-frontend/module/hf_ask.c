// SPDX-License-Identifier: GPL-2.0-only
/*
 * Commands that only the data node can answer (reservations, mode parameters, copies, ...), and events for it.
 *
 * A command waits in one list until its verdict comes. Its id is unique over restarts of the module, and stays the same when a
 * new data node reads the command again, so that the cluster carries it out once.
 *
 * Invariants: each command completes exactly once, by whoever takes it off the list; one that no data node has read ends with BUSY,
 * because nothing happened; one that was read and got no verdict ends with ABORTED COMMAND, because nobody knows; memory is bounded.
 */
#include <linux/module.h>
#include <linux/random.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <scsi/scsi_common.h>
#include <scsi/scsi_proto.h>

#include "hf.h"

struct hf_asked {
	struct list_head list;
	struct se_cmd *cmd; /* NULL: an event */
	struct hf_lu *lu;
	u64 deadline_boot_ns;
	bool read;
	/* A data node that is gone had read it: what it did is not known. */
	bool reread;
	struct hfk_header *message;
};

#define HF_ASKED_BYTES_MAX (64ul << 20)

static LIST_HEAD(hf_asked_list);
static DEFINE_SPINLOCK(hf_asked_lock);
static unsigned int hf_asked_count;
static unsigned long hf_asked_bytes;
static u64 hf_asked_id;
DECLARE_WAIT_QUEUE_HEAD(hf_ask_wait);

static unsigned int ask_timeout_ms = 10000;
module_param(ask_timeout_ms, uint, 0644);
MODULE_PARM_DESC(ask_timeout_ms, "How long a command waits for the data node, in milliseconds");

static void hf_ask_expire(struct work_struct *work);
static DECLARE_DELAYED_WORK(hf_ask_work, hf_ask_expire);

static const u8 hf_sense_unanswered[18] = { 0x70, 0, ABORTED_COMMAND, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x08, 0x01 };

/* The lock is held. */
static void hf_asked_unlink(struct hf_asked *asked)
{
	list_del_init(&asked->list);
	hf_asked_count--;
	hf_asked_bytes -= asked->message->len;
}

static void hf_asked_free(struct hf_asked *asked)
{
	if (asked->cmd)
		hf_io_end(asked->lu);
	hf_lu_put(asked->lu);
	kvfree(asked->message);
	kfree(asked);
}

static void hf_asked_end(struct hf_asked *asked)
{
	if (asked->cmd && (asked->read || asked->reread))
		hf_complete(asked->cmd, SAM_STAT_CHECK_CONDITION, hf_sense_unanswered, sizeof(hf_sense_unanswered));
	else if (asked->cmd)
		target_complete_cmd(asked->cmd, SAM_STAT_BUSY);
	hf_asked_free(asked);
}

static void hf_asked_end_list(struct list_head *ended)
{
	struct hf_asked *asked, *next;

	list_for_each_entry_safe(asked, next, ended, list) {
		list_del_init(&asked->list);
		hf_asked_end(asked);
	}
}

static void hf_ask_expire(struct work_struct *work)
{
	struct hf_asked *asked, *next;
	u64 now = ktime_get_boottime_ns();
	LIST_HEAD(ended);
	bool more;

	spin_lock_irq(&hf_asked_lock);
	list_for_each_entry_safe(asked, next, &hf_asked_list, list) {
		if (now >= asked->deadline_boot_ns) {
			hf_asked_unlink(asked);
			list_add_tail(&asked->list, &ended);
		}
	}
	more = !list_empty(&hf_asked_list);
	spin_unlock_irq(&hf_asked_lock);
	hf_asked_end_list(&ended);
	if (more)
		schedule_delayed_work(&hf_ask_work, msecs_to_jiffies(100));
}

static bool hf_asked_add(struct hf_asked *asked)
{
	bool room;

	spin_lock_irq(&hf_asked_lock);
	room = hf_asked_count < HFK_ASKED_MAX && hf_asked_bytes + asked->message->len <= HF_ASKED_BYTES_MAX;
	if (room) {
		if (!hf_asked_id)
			/* Ids of an earlier life of the module must not come back. */
			hf_asked_id = get_random_u64() | 1;
		asked->message->id = hf_asked_id;
		hf_asked_id += 2;
		hf_asked_count++;
		hf_asked_bytes += asked->message->len;
		list_add_tail(&asked->list, &hf_asked_list);
	}
	spin_unlock_irq(&hf_asked_lock);
	if (room) {
		wake_up(&hf_ask_wait);
		schedule_delayed_work(&hf_ask_work, msecs_to_jiffies(100));
	}
	return room;
}

static struct hf_asked *hf_asked_new(struct hf_lu *lu, u16 kind, size_t len)
{
	struct hf_asked *asked = kzalloc(sizeof(*asked), GFP_NOIO);

	if (!asked)
		return NULL;
	asked->message = kvzalloc(len, GFP_NOIO);
	if (!asked->message) {
		kfree(asked);
		return NULL;
	}
	asked->message->magic = HFK_MAGIC;
	asked->message->version = HFK_VERSION;
	asked->message->kind = kind;
	asked->message->len = len;
	memcpy(asked->message->volume, &lu->volume, sizeof(asked->message->volume));
	INIT_LIST_HEAD(&asked->list);
	hf_lu_get(lu);
	asked->lu = lu;
	asked->deadline_boot_ns = ktime_get_boottime_ns() + (u64)ask_timeout_ms * NSEC_PER_MSEC;
	return asked;
}

void hf_ask(struct hf_lu *lu, struct hf_nexus *nexus, struct se_cmd *cmd)
{
	u32 out_len = cmd->data_direction == DMA_TO_DEVICE ? cmd->data_length : 0;
	u32 in_len = cmd->data_direction == DMA_FROM_DEVICE ? cmd->data_length : 0;
	u8 name[HF_TRANSPORT_ID_LEN_MAX];
	struct hfk_command *told;
	struct hf_asked *asked;
	size_t name_len = hf_core_nexus_name(nexus->core, name, sizeof(name));
	u8 *at;

	if (out_len > HFK_DATA_LEN_MAX || name_len > sizeof(name))
		goto busy;
	asked = hf_asked_new(lu, HFK_COMMAND, sizeof(struct hfk_header) + sizeof(*told) + name_len + out_len);
	if (!asked)
		goto busy;
	told = (struct hfk_command *)(asked->message + 1);
	told->cdb_len = min_t(size_t, scsi_command_size(cmd->t_task_cdb), sizeof(told->cdb));
	memcpy(told->cdb, cmd->t_task_cdb, told->cdb_len);
	told->relative_port = hf_nexus_relative_port(nexus);
	told->transport_id_len = name_len;
	told->attribute = cmd->sam_task_attr;
	told->data_in_len = min_t(u32, in_len, HFK_DATA_LEN_MAX);
	told->data_out_len = out_len;
	at = (u8 *)(told + 1);
	memcpy(at, name, name_len);
	if (out_len && sg_copy_to_buffer(cmd->t_data_sg, cmd->t_data_nents, at + name_len, out_len) != out_len) {
		hf_asked_free(asked);
		goto busy;
	}
	/* Counted until it ends: closing the gate waits for it. */
	hf_io_begin(lu);
	asked->cmd = cmd;
	if (hf_asked_add(asked))
		return;
	asked->cmd = NULL;
	hf_io_end(lu);
	hf_asked_free(asked);
busy:
	target_complete_cmd(cmd, SAM_STAT_BUSY);
}

void hf_ask_event_drained(const uuid_t *volume, u64 serial, u64 version)
{
	struct hfk_drained *drained;
	struct hf_asked *event;
	struct hf_lu *lu = hf_lu_find(volume);

	if (!lu)
		return;
	event = hf_asked_new(lu, HFK_DRAINED, sizeof(struct hfk_header) + sizeof(*drained));
	hf_lu_put(lu);
	if (!event)
		return;
	drained = (struct hfk_drained *)(event->message + 1);
	drained->serial = serial;
	drained->version = version;
	if (!hf_asked_add(event))
		hf_asked_free(event);
}

static struct hf_asked *hf_asked_unread(void)
{
	struct hf_asked *asked;

	list_for_each_entry(asked, &hf_asked_list, list)
		if (!asked->read)
			return asked;
	return NULL;
}

bool hf_ask_ready(void)
{
	bool ready;

	spin_lock_irq(&hf_asked_lock);
	ready = hf_asked_unread() != NULL;
	spin_unlock_irq(&hf_asked_lock);
	return ready;
}

/* One message to the data node. The message is copied, because the command may end while user space is written. */
ssize_t hf_ask_read(char __user *to, size_t room, bool nonblock)
{
	struct hf_asked *asked, *event = NULL;
	void *copy = NULL;
	u32 copy_len = 0;
	ssize_t len;

	for (;;) {
		u32 needed = 0;

		spin_lock_irq(&hf_asked_lock);
		asked = hf_asked_unread();
		if (asked && asked->message->len <= min_t(size_t, room, copy_len)) {
			len = asked->message->len;
			memcpy(copy, asked->message, len);
			asked->read = true;
			if (!asked->cmd) {
				hf_asked_unlink(asked);
				event = asked;
			}
			spin_unlock_irq(&hf_asked_lock);
			break;
		}
		if (asked)
			needed = asked->message->len;
		spin_unlock_irq(&hf_asked_lock);
		if (needed > room) {
			kvfree(copy);
			return -EMSGSIZE;
		}
		if (needed) {
			/* The message that it was for may have ended meanwhile, and the next one be longer. */
			kvfree(copy);
			copy = kvmalloc(needed, GFP_KERNEL);
			if (!copy)
				return -ENOMEM;
			copy_len = needed;
			continue;
		}
		if (nonblock) {
			kvfree(copy);
			return -EAGAIN;
		}
		if (wait_event_interruptible(hf_ask_wait, hf_ask_ready())) {
			kvfree(copy);
			return -ERESTARTSYS;
		}
	}
	if (event)
		hf_asked_free(event);
	if (copy_to_user(to, copy, len))
		/* A command stays read: it ends by its deadline, as one that nobody knows about. */
		len = -EFAULT;
	kvfree(copy);
	return len;
}

int hf_ask_answer(const struct hfk_verdict *verdict, u64 id, const u8 *data)
{
	struct hf_asked *asked, *found = NULL;

	if (verdict->sense_len > sizeof(verdict->sense) ||
	    (verdict->status == SAM_STAT_CHECK_CONDITION) != (verdict->sense_len >= 8))
		return -EINVAL;
	switch (verdict->status) {
	case SAM_STAT_GOOD:
	case SAM_STAT_CHECK_CONDITION:
	case SAM_STAT_BUSY:
	case SAM_STAT_RESERVATION_CONFLICT:
	case SAM_STAT_TASK_SET_FULL:
	case SAM_STAT_TASK_ABORTED:
		break;
	default:
		return -EINVAL;
	}
	spin_lock_irq(&hf_asked_lock);
	list_for_each_entry(asked, &hf_asked_list, list) {
		if (asked->cmd && asked->read && asked->message->id == id) {
			hf_asked_unlink(asked);
			found = asked;
			break;
		}
	}
	spin_unlock_irq(&hf_asked_lock);
	if (!found)
		return -ENOENT;
	if (!hf_gate_is_open(found->lu))
		/* What the data node knows may be old by now. */
		hf_complete(found->cmd, SAM_STAT_CHECK_CONDITION, hf_sense_unanswered, sizeof(hf_sense_unanswered));
	else if (verdict->status == SAM_STAT_GOOD)
		hf_complete_data(found->cmd, data, verdict->data_len);
	else
		hf_complete(found->cmd, verdict->status, verdict->sense, verdict->sense_len);
	hf_asked_free(found);
	return 0;
}

/* The next data node reads the commands again, under their ids. */
void hf_ask_daemon_gone(void)
{
	struct hf_asked *asked;

	spin_lock_irq(&hf_asked_lock);
	list_for_each_entry(asked, &hf_asked_list, list) {
		asked->reread |= asked->read;
		asked->read = false;
	}
	spin_unlock_irq(&hf_asked_lock);
}

void hf_ask_aborted(struct list_head *aborted)
{
	struct hf_asked *asked, *next;
	struct se_cmd *cmd;
	LIST_HEAD(ended);

	spin_lock_irq(&hf_asked_lock);
	list_for_each_entry_safe(asked, next, &hf_asked_list, list) {
		list_for_each_entry(cmd, aborted, state_list) {
			if (asked->cmd == cmd) {
				hf_asked_unlink(asked);
				list_add_tail(&asked->list, &ended);
				break;
			}
		}
	}
	spin_unlock_irq(&hf_asked_lock);
	hf_asked_end_list(&ended);
}

/* Of one unit, or of all. */
void hf_ask_end_all(struct hf_lu *lu)
{
	struct hf_asked *asked, *next;
	LIST_HEAD(ended);

	spin_lock_irq(&hf_asked_lock);
	list_for_each_entry_safe(asked, next, &hf_asked_list, list) {
		if (!lu || asked->lu == lu) {
			hf_asked_unlink(asked);
			list_add_tail(&asked->list, &ended);
		}
	}
	spin_unlock_irq(&hf_asked_lock);
	hf_asked_end_list(&ended);
}

void hf_ask_exit(void)
{
	hf_ask_end_all(NULL);
	cancel_delayed_work_sync(&hf_ask_work);
}
