// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/holdfast: the data node's side. hf_protocol.h says what passes.
 *
 * Invariants: one data node at a time; nothing it sends is used before it is checked whole; a message that is refused changes
 * nothing; opening the device changes nothing yet: HELLO closes every gate and waits for what is in flight.
 */
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "hf.h"

static atomic_t hf_channel_open = ATOMIC_INIT(0);

struct hf_channel {
	struct mutex lock;
	bool said_hello;
};

static int hf_open(struct inode *inode, struct file *file)
{
	struct hf_channel *channel;

	if (atomic_cmpxchg(&hf_channel_open, 0, 1))
		return -EBUSY;
	channel = kzalloc(sizeof(*channel), GFP_KERNEL);
	if (!channel) {
		atomic_set(&hf_channel_open, 0);
		return -ENOMEM;
	}
	mutex_init(&channel->lock);
	file->private_data = channel;
	return 0;
}

/* The lease stays: I/O goes on until it ends. */
static int hf_release(struct inode *inode, struct file *file)
{
	hf_ask_daemon_gone();
	kfree(file->private_data);
	atomic_set(&hf_channel_open, 0);
	return 0;
}

static ssize_t hf_read(struct file *file, char __user *to, size_t room, loff_t *at)
{
	struct hf_channel *channel = file->private_data;

	if (!READ_ONCE(channel->said_hello))
		return -EPIPE;
	return hf_ask_read(to, room, file->f_flags & O_NONBLOCK);
}

static __poll_t hf_poll(struct file *file, poll_table *table)
{
	poll_wait(file, &hf_ask_wait, table);
	return EPOLLOUT | EPOLLWRNORM | (hf_ask_ready() ? EPOLLIN | EPOLLRDNORM : 0);
}

/* A part of fixed size at the front of a message's body. */
static const void *hf_take(const u8 **body, size_t *len, size_t size)
{
	const void *part = *body;

	if (*len < size)
		return NULL;
	*body += size;
	*len -= size;
	return part;
}

static int hf_about_volume(const struct hfk_header *header, const u8 *body, size_t len)
{
	const struct hfk_attention *attention;
	struct hf_lu *lu = hf_lu_find((const uuid_t *)header->volume);
	int rc = -EINVAL;

	if (!lu)
		return -ENODEV;
	switch (header->kind) {
	case HFK_INSTALL:
		rc = hf_lu_install(lu, body, len);
		break;
	case HFK_SERVE:
		if (!len && header->id <= 1)
			rc = hf_lu_set_open(lu, header->id);
		break;
	case HFK_ATTENTION:
		attention = hf_take(&body, &len, sizeof(*attention));
		if (attention && attention->transport_id_len == len)
			rc = hf_nexus_raise(lu, attention, body, len);
		break;
	}
	hf_lu_put(lu);
	return rc;
}

static int hf_message(struct hf_channel *channel, const struct hfk_header *header, const u8 *body, size_t len)
{
	const struct hfk_verdict *verdict;
	const struct hfk_lease *lease;
	const struct hfk_port *port;

	if (header->kind == HFK_HELLO) {
		if (len || channel->said_hello)
			return -EINVAL;
		hf_lu_close_all();
		WRITE_ONCE(channel->said_hello, true);
		return 0;
	}
	if (!channel->said_hello)
		return -EPIPE;
	switch (header->kind) {
	case HFK_LEASE:
		lease = hf_take(&body, &len, sizeof(*lease));
		return lease && !len ? hf_gate_set_lease(lease->until_boot_ns) : -EINVAL;
	case HFK_PORT:
		port = hf_take(&body, &len, sizeof(*port));
		return port && !len && !port->reserved ? hf_port_set(port) : -EINVAL;
	case HFK_VERDICT:
		verdict = hf_take(&body, &len, sizeof(*verdict));
		return verdict && verdict->data_len == len ? hf_ask_answer(verdict, header->id, body) : -EINVAL;
	case HFK_INSTALL:
	case HFK_SERVE:
	case HFK_ATTENTION:
		return hf_about_volume(header, body, len);
	}
	return -EOPNOTSUPP;
}

static ssize_t hf_write(struct file *file, const char __user *from, size_t len, loff_t *at)
{
	struct hf_channel *channel = file->private_data;
	struct hfk_header *header;
	int rc;

	if (len < sizeof(*header) || len > HFK_MESSAGE_LEN_MAX)
		return -EINVAL;
	header = vmemdup_user(from, len);
	if (IS_ERR(header))
		return PTR_ERR(header);
	if (header->magic != HFK_MAGIC || header->len != len || header->reserved) {
		rc = -EBADMSG;
	} else if (header->version != HFK_VERSION) {
		rc = -EPROTONOSUPPORT;
	} else {
		mutex_lock(&channel->lock);
		rc = hf_message(channel, header, (const u8 *)(header + 1), len - sizeof(*header));
		mutex_unlock(&channel->lock);
	}
	kvfree(header);
	return rc ?: len;
}

static const struct file_operations hf_channel_fops = {
	.owner = THIS_MODULE,
	.open = hf_open,
	.release = hf_release,
	.read = hf_read,
	.write = hf_write,
	.poll = hf_poll,
	.llseek = noop_llseek,
};

static struct miscdevice hf_channel_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "holdfast",
	.fops = &hf_channel_fops,
	.mode = 0600,
};

int hf_channel_init(void)
{
	return misc_register(&hf_channel_device);
}

void hf_channel_exit(void)
{
	misc_deregister(&hf_channel_device);
}
