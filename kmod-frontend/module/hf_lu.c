// SPDX-License-Identifier: GPL-2.0-only
/*
 * Logical units: their life in configfs, the image that rules them, and the gate.
 *
 * Invariants: the lease counts on the boot-time clock, so that a machine that slept finds it ended; a unit whose gate was
 * closed has no I/O in flight when the closing has been answered; an image is freed after the last I/O admitted under it, and
 * the data node is told.
 */
#include <linux/blkdev.h>
#include <linux/module.h>
#include <linux/slab.h>

#include <scsi/scsi_proto.h>

#include "hf.h"

static LIST_HEAD(hf_lus);
static DEFINE_MUTEX(hf_lus_lock);
static struct workqueue_struct *hf_drained_wq;
/* CLOCK_BOOTTIME, ns: end of the node's lease. */
static atomic64_t hf_lease_until = ATOMIC64_INIT(0);

bool hf_gate_is_open(const struct hf_lu *lu)
{
	return READ_ONCE(lu->open) && ktime_get_boottime_ns() < (u64)atomic64_read(&hf_lease_until);
}

u64 hf_gate_lease(void)
{
	return atomic64_read(&hf_lease_until);
}

int hf_gate_set_lease(u64 until)
{
	u64 now = ktime_get_boottime_ns();

	if (until > now && until - now > HFK_LEASE_NS_MAX)
		return -EINVAL;
	atomic64_set(&hf_lease_until, until);
	return 0;
}

void hf_io_begin(struct hf_lu *lu)
{
	atomic_inc(&lu->in_flight);
	/* Pairs with the barrier in hf_lu_set_open: either the closer sees this I/O, or this I/O sees the gate closed. */
	smp_mb__after_atomic();
}

void hf_io_end(struct hf_lu *lu)
{
	if (atomic_dec_and_test(&lu->in_flight))
		wake_up_all(&lu->idle);
}

static void hf_lu_release(struct kref *ref)
{
	struct hf_lu *lu = container_of(ref, struct hf_lu, ref);

	hf_nexus_free_all(lu);
	kfree(lu);
}

void hf_lu_get(struct hf_lu *lu)
{
	kref_get(&lu->ref);
}

void hf_lu_put(struct hf_lu *lu)
{
	kref_put(&lu->ref, hf_lu_release);
}

/* The unit of a volume, with a reference. */
struct hf_lu *hf_lu_find(const uuid_t *volume)
{
	struct hf_lu *lu, *found = NULL;

	mutex_lock(&hf_lus_lock);
	list_for_each_entry(lu, &hf_lus, all) {
		if (lu->has_volume && uuid_equal(&lu->volume, volume)) {
			hf_lu_get(lu);
			found = lu;
			break;
		}
	}
	mutex_unlock(&hf_lus_lock);
	return found;
}

/* ---- images ---- */

static void hf_image_drained(struct work_struct *work)
{
	struct hf_image *image = container_of(work, struct hf_image, drained);

	hf_ask_event_drained(&image->lu->volume, image->serial, image->facts.version);
	hf_lu_put(image->lu);
	kvfree_rcu(image, rcu);
}

/* May be called from an interrupt: what can sleep is left to a worker. */
static void hf_image_release(struct kref *ref)
{
	struct hf_image *image = container_of(ref, struct hf_image, ref);

	queue_work(hf_drained_wq, &image->drained);
}

struct hf_image *hf_image_get(struct hf_lu *lu)
{
	struct hf_image *image;

	rcu_read_lock();
	image = rcu_dereference(lu->image);
	if (image && !kref_get_unless_zero(&image->ref))
		image = NULL;
	rcu_read_unlock();
	return image;
}

void hf_image_put(struct hf_image *image)
{
	kref_put(&image->ref, hf_image_release);
}

int hf_lu_install(struct hf_lu *lu, const u8 *message, size_t len)
{
	size_t size = hf_core_image_size(message, len);
	struct hf_image *image, *old;
	int rc = 0;

	if (!size)
		return -EBADMSG;
	image = kvzalloc(sizeof(*image) + size, GFP_KERNEL);
	if (!image)
		return -ENOMEM;
	if (hf_core_image_build(message, len, image->memory, size) ||
	    hf_core_image_facts(image->memory, message, len, &image->facts)) {
		kvfree(image);
		return -EBADMSG;
	}
	kref_init(&image->ref);
	INIT_WORK(&image->drained, hf_image_drained);
	image->lu = lu;

	mutex_lock(&lu->install_lock);
	old = rcu_dereference_protected(lu->image, lockdep_is_held(&lu->install_lock));
	if (!lu->configured)
		rc = -ENODEV;
	else if (image->facts.block_size != lu->dev.dev_attrib.hw_block_size ||
		 image->facts.blocks > div_u64(lu->size, image->facts.block_size))
		/* The store is smaller than the unit would be, or its blocks are of another size. */
		rc = -ERANGE;
	else if (old && (image->facts.version < old->facts.version ||
			 image->facts.epoch_generation < old->facts.epoch_generation ||
			 (image->facts.epoch_generation == old->facts.epoch_generation &&
			  image->facts.epoch_number < old->facts.epoch_number)))
		rc = -ESTALE;
	if (rc) {
		mutex_unlock(&lu->install_lock);
		kvfree(image);
		return rc;
	}
	hf_lu_get(lu);
	image->serial = ++lu->serial;
	rcu_assign_pointer(lu->image, image);
	mutex_unlock(&lu->install_lock);
	if (old)
		hf_image_put(old);
	return 0;
}

/* Closing returns when no I/O is in flight any more. */
int hf_lu_set_open(struct hf_lu *lu, bool open)
{
	int rc = 0;

	mutex_lock(&lu->install_lock);
	if (open && (!lu->configured || !rcu_access_pointer(lu->image)))
		rc = -ENODEV;
	else
		WRITE_ONCE(lu->open, open);
	mutex_unlock(&lu->install_lock);
	if (rc || open)
		return rc;
	/* Pairs with hf_io_begin. */
	smp_mb();
	wait_event(lu->idle, !atomic_read(&lu->in_flight));
	return 0;
}

/* A new data node takes over: nothing of the old one may be under way. */
void hf_lu_close_all(void)
{
	struct hf_lu *lu;

	atomic64_set(&hf_lease_until, 0);
	mutex_lock(&hf_lus_lock);
	list_for_each_entry(lu, &hf_lus, all)
		hf_lu_set_open(lu, false);
	mutex_unlock(&hf_lus_lock);
}

/* ---- configfs ---- */

static int hf_attach_hba(struct se_hba *hba, u32 id)
{
	hba->hba_ptr = NULL;
	return 0;
}

static void hf_detach_hba(struct se_hba *hba)
{
}

static struct se_device *hf_alloc_device(struct se_hba *hba, const char *name)
{
	struct hf_lu *lu = kzalloc(sizeof(*lu), GFP_KERNEL);

	if (!lu)
		return NULL;
	kref_init(&lu->ref);
	mutex_init(&lu->install_lock);
	spin_lock_init(&lu->nexus_lock);
	hash_init(lu->nexuses);
	init_waitqueue_head(&lu->idle);
	mutex_lock(&hf_lus_lock);
	list_add_tail(&lu->all, &hf_lus);
	mutex_unlock(&hf_lus_lock);
	return &lu->dev;
}

static int hf_configure(struct se_device *dev)
{
	struct hf_lu *lu = hf_lu_of(dev);
	int rc;

	if (!lu->has_volume || lu->kind == HF_STORE_NONE) {
		pr_err("holdfast: set volume= and one of block=, file=, null= first\n");
		return -EINVAL;
	}
	if (!dev->dev_attrib.hw_block_size)
		dev->dev_attrib.hw_block_size = 512;
	rc = hf_store_open(lu);
	if (rc) {
		pr_err("holdfast: %s cannot be opened: %d\n", lu->path, rc);
		return rc;
	}
	dev->dev_attrib.hw_max_sectors = 32768;
	dev->dev_attrib.hw_queue_depth = 128;
	mutex_lock(&lu->install_lock);
	lu->configured = true;
	mutex_unlock(&lu->install_lock);
	return 0;
}

static void hf_destroy(struct se_device *dev)
{
	struct hf_lu *lu = hf_lu_of(dev);
	struct hf_image *image;

	hf_lu_set_open(lu, false);
	hf_ask_end_all(lu);
	mutex_lock(&lu->install_lock);
	lu->configured = false;
	image = rcu_dereference_protected(lu->image, lockdep_is_held(&lu->install_lock));
	RCU_INIT_POINTER(lu->image, NULL);
	mutex_unlock(&lu->install_lock);
	if (image)
		hf_image_put(image);
	hf_store_close(lu);
}

static void hf_free_rcu(struct rcu_head *head)
{
	hf_lu_put(container_of(head, struct hf_lu, dev.rcu_head));
}

static void hf_free(struct se_device *dev)
{
	struct hf_lu *lu = hf_lu_of(dev);

	mutex_lock(&hf_lus_lock);
	list_del(&lu->all);
	mutex_unlock(&hf_lus_lock);
	call_rcu(&dev->rcu_head, hf_free_rcu);
}

static ssize_t hf_set_params(struct se_device *dev, const char *page, ssize_t count)
{
	struct hf_lu *lu = hf_lu_of(dev);
	char *text, *line, *at;
	ssize_t rc = count;

	if (lu->configured)
		return -EBUSY;
	text = kstrndup(page, count, GFP_KERNEL);
	if (!text)
		return -ENOMEM;
	at = text;
	while (rc == count && (line = strsep(&at, ",\n"))) {
		if (!*line)
			continue;
		if (!strncmp(line, "volume=", 7)) {
			if (uuid_parse(line + 7, &lu->volume))
				rc = -EINVAL;
			else
				lu->has_volume = true;
		} else if (!strncmp(line, "block=", 6)) {
			lu->kind = HF_STORE_BLOCK;
			if (strscpy(lu->path, line + 6, sizeof(lu->path)) < 0)
				rc = -ENAMETOOLONG;
		} else if (!strncmp(line, "file=", 5)) {
			lu->kind = HF_STORE_FILE;
			if (strscpy(lu->path, line + 5, sizeof(lu->path)) < 0)
				rc = -ENAMETOOLONG;
		} else if (!strncmp(line, "null=", 5)) {
			lu->kind = HF_STORE_NULL;
			if (kstrtou64(line + 5, 0, &lu->size))
				rc = -EINVAL;
		} else if (!strcmp(line, "block_size=4096")) {
			dev->dev_attrib.hw_block_size = 4096;
		} else if (!strcmp(line, "block_size=512")) {
			dev->dev_attrib.hw_block_size = 512;
		} else {
			rc = -EINVAL;
		}
	}
	kfree(text);
	return rc;
}

static ssize_t hf_show_params(struct se_device *dev, char *page)
{
	static const char * const kinds[] = { "none", "block", "file", "null" };
	struct hf_lu *lu = hf_lu_of(dev);
	struct hf_image *image = hf_image_get(lu);
	ssize_t n;

	n = scnprintf(page, PAGE_SIZE, "volume=%pU store=%s path=%s size=%llu open=%d lease_ms=%lld in_flight=%d\n", &lu->volume,
		      kinds[lu->kind], lu->path, lu->size, lu->open,
		      (long long)(hf_gate_lease() - ktime_get_boottime_ns()) / 1000000, atomic_read(&lu->in_flight));
	if (image) {
		n += scnprintf(page + n, PAGE_SIZE - n, "image=%llu version=%llu epoch=%u.%llu blocks=%llu registrants=%u\n",
			       image->serial, image->facts.version, image->facts.epoch_generation,
			       image->facts.epoch_number, image->facts.blocks, image->facts.registrants);
		hf_image_put(image);
	}
	return n;
}

static sector_t hf_last_block(struct se_device *dev)
{
	struct hf_lu *lu = hf_lu_of(dev);
	struct hf_image *image = hf_image_get(lu);
	u64 blocks = div_u64(lu->size, dev->dev_attrib.hw_block_size);

	if (image) {
		blocks = image->facts.blocks;
		hf_image_put(image);
	}
	return blocks ? blocks - 1 : 0;
}

static u32 hf_device_type(struct se_device *dev)
{
	return TYPE_DISK;
}

const struct target_backend_ops hf_ops = {
	.name = "holdfast",
	.inquiry_prod = "VOLUME",
	.inquiry_rev = "1",
	.owner = THIS_MODULE,
	/* LIO's own reservations, access states and inquiry data are a node's; ours are the cluster's. */
	.transport_flags_default = TRANSPORT_FLAG_PASSTHROUGH | TRANSPORT_FLAG_PASSTHROUGH_ALUA |
				   TRANSPORT_FLAG_PASSTHROUGH_PGR,
	.attach_hba = hf_attach_hba,
	.detach_hba = hf_detach_hba,
	.alloc_device = hf_alloc_device,
	.configure_device = hf_configure,
	.destroy_device = hf_destroy,
	.free_device = hf_free,
	.set_configfs_dev_params = hf_set_params,
	.show_configfs_dev_params = hf_show_params,
	.parse_cdb = hf_parse_cdb,
	.tmr_notify = hf_tmr_notify,
	.get_device_type = hf_device_type,
	.get_blocks = hf_last_block,
	.tb_dev_attrib_attrs = passthrough_attrib_attrs,
};

static int __init hf_init(void)
{
	int rc;

	hf_drained_wq = alloc_workqueue("holdfast_drained", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (!hf_drained_wq)
		return -ENOMEM;
	rc = hf_store_init();
	if (rc)
		goto no_store;
	rc = hf_channel_init();
	if (rc)
		goto no_channel;
	rc = transport_backend_register(&hf_ops);
	if (rc)
		goto no_backend;
	return 0;
no_backend:
	hf_channel_exit();
no_channel:
	hf_store_exit();
no_store:
	destroy_workqueue(hf_drained_wq);
	return rc;
}

static void __exit hf_exit(void)
{
	target_backend_unregister(&hf_ops);
	hf_channel_exit();
	/* Images of the last units, then what RCU still holds. */
	flush_workqueue(hf_drained_wq);
	rcu_barrier();
	destroy_workqueue(hf_drained_wq);
	hf_ask_exit();
	hf_ports_free();
	hf_store_exit();
}

module_init(hf_init);
module_exit(hf_exit);
MODULE_LICENSE("GPL");
MODULE_ALIAS("target_core_holdfast");
MODULE_DESCRIPTION("Holdfast front end: clustered reservations, Unit Attentions and leases for every LIO fabric");
